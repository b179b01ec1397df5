// Pages of AI SDK 6 or 7 whose answer waits for the user: two tabs on two pods, and tabs that are loaded again.
import { createInterface } from "node:readline";
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [version, decision, url, other] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf(version);
const commands = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

class Page extends Chat {
  constructor(base, messages = []) {
    const transport = new sdk.DefaultChatTransport({
      api: `${base}/v1/ai-sdk/chat`,
      body: { model: "careful" },
      prepareReconnectToStreamRequest: ({ api, id }) => ({ api: `${api}/${id}/stream?startIndex=0` }),
    });
    super({
      id: "chat",
      transport,
      state: new State(structuredClone(messages)),
      onError: () => {},
      onToolCall: ({ toolCall }) => toolCall.providerExecuted || called.push(toolCall.toolCallId),
      sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithApprovalResponses,
    });
  }
  get parts() {
    return this.messages.at(-1)?.parts ?? [];
  }
  get tool() {
    return this.parts.findLast((part) => part.type === "tool-weather");
  }
  get text() {
    return this.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
  }
  get settled() {
    return this.status === "ready" || this.status === "error";
  }
  async asks() {
    await this.until((page) => page.settled && page.tool?.state === "approval-requested");
  }
  async answer() {
    this.addToolApprovalResponse({ id: this.tool.approval.id, approved: decision === "approve" });
    await this.until((page) => page.settled && (page.status === "error" || page.text.includes("Done.")));
  }
}

const called = [];
const tell = (event, { status, error, messages }) => say(event, { status, error: error?.message, messages, called });

const first = new Page(url);
first.sendMessage({ text: "How cold is it?" });
await first.asks();
tell("asked", first);
// All processes may have been replaced meanwhile.
const { value: later } = await commands.next();
const second = new Page(later || other, first.messages);
await second.resumeStream();
await second.asks();
tell("reloaded", second);
await second.answer();
tell("answered", second);
if (!later) {
  // The first tab still shows the buttons.
  await first.answer();
  tell("late", first);
}
const third = new Page(later || other, first.messages.slice(0, 1));
await third.resumeStream();
tell("replayed", third);
await third.sendMessage({ text: "Thanks." });
tell("next", third);
process.exit(0);
