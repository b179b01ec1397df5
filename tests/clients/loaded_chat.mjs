// A page of AI SDK 5, 6 or 7 that is loaded again with the messages that the server has, also during an answer.
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [version, url] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf(version);

class Page extends Chat {
  constructor(messages = []) {
    super({
      id: "loaded",
      transport: new sdk.DefaultChatTransport({ api: `${url}/v1/ai-sdk/chat` }),
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

const stored = async () => (await (await fetch(`${url}/v1/conversations/loaded?form=aisdk`)).json()).messages;

async function compare(event, page) {
  say(event, { page: page.messages, stored: await stored() });
}

let page = new Page();
await page.ask("A");
await page.ask("Run.", "Three.");
await page.ask("Call.", "It is cold.");
await page.ask("B");
await page.regenerate();
await page.ask("Fail.", "So far");
await compare("ended", page);

// The page is loaded again while an answer grows, and follows it.
void page.sendMessage({ text: "Wait." });
await page.until(({ text }) => text.includes("Half"));
page = new Page(await stored());
void page.resumeStream();
await page.until(({ status, text }) => status === "streaming" && text.includes("Half"));
say("half");
await page.until(({ settled, text }) => settled && text.includes("whole"));
await compare("resumed", page);
page = new Page(await stored());
await page.ask("C");
await compare("over", page);
process.exit(0);
