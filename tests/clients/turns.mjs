// A page of AI SDK 5, 6 or 7 that sends all messages, or the last only, as the SDK's guide or our documentation has it.
import { prepareSendMessagesRequest } from "./last_message.mjs";
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [version, form, scenario, url, other] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf(version);

const forms = {
  whole: {},
  documented: { prepareSendMessagesRequest },
  guide: { prepareSendMessagesRequest: ({ messages, id }) => ({ body: { message: messages.at(-1), id } }) },
  trigger: {
    prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
      body:
        trigger === "regenerate-message" ? { trigger, id, messageId } : { trigger, id, message: messages.at(-1), messageId },
    }),
  },
};

class Page extends Chat {
  constructor(base, messages = []) {
    const transport = new sdk.DefaultChatTransport({ api: `${base}/v1/ai-sdk/chat`, ...forms[form] });
    super({
      id: form,
      transport,
      state: new State(messages),
      onError: () => {},
      sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithToolCalls,
      onToolCall: ({ toolCall: { toolName, toolCallId, providerExecuted } }) => {
        if (!providerExecuted) void this.addToolOutput({ tool: toolName, toolCallId, output: 3 });
      },
    });
  }
  get text() {
    const last = this.messages.at(-1);
    return last?.role === "assistant" ? last.parts.map((part) => (part.type === "text" ? part.text : "")).join("") : "";
  }
  get settled() {
    return this.status === "ready" || this.status === "error";
  }
  async ask(text, answer = `You said ${text}`) {
    void this.sendMessage({ text });
    await this.until((page) => page.settled && page.text.includes(answer));
  }
}

const tell = (event, page) =>
  say(event, { status: page.status, error: page.error?.message, texts: page.messages.map(({ parts }) => parts.length) });

let page = new Page(url);
if (scenario === "turns") {
  await page.ask("A");
  await page.ask("Run.", "Three.");
  await page.ask("Call.", "It is cold.");
  await page.ask("B");
  await page.regenerate();
  await page.ask("Fail.", "So far");
  await page.ask("C");
  await page.regenerate({ messageId: page.messages[3].id });
  // An answer that is under way when the page is loaded again, on another pod.
  void page.sendMessage({ text: "Wait." });
  await page.until(({ text }) => text.includes("Half"));
  page = new Page(other, structuredClone(page.messages.slice(0, -1)));
  void page.resumeStream();
  await page.until(({ status, text }) => status === "streaming" && text.includes("Half"));
  say("half");
  await page.until(({ settled, text }) => settled && text.includes("whole"));
  await page.ask("D");
  tell("over", page);
} else {
  // The pod dies in the answer.
  await page.ask("A");
  void page.sendMessage({ text: "Wait." });
  await page.until(({ text }) => text.includes("Half"));
  say("half");
  await page.until(({ status }) => status === "error");
  page = new Page(other, structuredClone(page.messages.slice(0, -1)));
  void page.resumeStream();
  await page.until(({ status, text }) => status === "streaming" && text.includes("Half"));
  say("resumed");
  await page.until(({ settled, text }) => settled && text.includes("whole"));
  await page.ask("D");
  tell("over", page);
}
process.exit(0);
