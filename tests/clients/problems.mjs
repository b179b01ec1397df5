// What a page of AI SDK 5, 6 or 7 reads from `chat.error`.
import { problemOf } from "./problem.mjs";
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [version, api, cases] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf(version);

for (const { model, workflow, body } of JSON.parse(cases)) {
  const transport = workflow
    ? new (await import("@ai-sdk/workflow/client")).WorkflowChatTransport({
        api,
        prepareSendMessagesRequest: ({ id, messages }) => ({ body: { id, messages, model } }),
      })
    : new sdk.DefaultChatTransport({ api, body: { model, ...body } });
  const chat = new Chat({ id: crypto.randomUUID(), state: new State([]), transport });
  await chat.sendMessage({ text: "Hello" });
  await chat.until(({ status }) => status === "error");
  const metadata = chat.lastMessage?.role === "assistant" ? chat.lastMessage.metadata : undefined;
  say("failed", { ...problemOf(chat.error), metadata });
}
process.exit(0);
