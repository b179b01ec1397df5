// A page with tools, in AI SDK 5, 6 or 7: `AbstractChat`, which useChat is made of, and a state that is a list.
import { clientTools } from "./client_tools.mjs";
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [version, scenario, url, other, model = scenario] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf(version);

class Page extends Chat {
  constructor({ base = url, messages = [], ...init }) {
    const transport = new sdk.DefaultChatTransport({ api: `${base}/v1/ai-sdk/chat`, body: { model } });
    super({ id: "chat", transport, state: new State(messages), onError: () => {}, ...init });
  }
}

const called = [];
const tools = sdk.lastAssistantMessageIsCompleteWithToolCalls;
const approvals = sdk.lastAssistantMessageIsCompleteWithApprovalResponses ?? tools;
const sendAutomaticallyWhen = (chat) => tools(chat) || approvals(chat);
const last = (page) => page.messages.at(-1)?.parts ?? [];
const tool = (page) => last(page).findLast((part) => part.type === "tool-weather");
const text = (page) => last(page).map((part) => (part.type === "text" ? part.text : "")).join("");
const settled = (page) => page.status === "ready" || page.status === "error";

function page({ answer, ...init } = {}) {
  const made = new Page({
    sendAutomaticallyWhen,
    onToolCall: ({ toolCall }) => void called.push(toolCall.toolCallId),
    ...init,
    ...(answer && clientTools({ weather: runWeather })),
  });
  function runWeather({ toolName, toolCallId }) {
    called.push(toolCallId);
    made.addToolOutput({ tool: toolName, toolCallId, output: 3 });
  }
  return made;
}

const tell = (event, made) =>
  say(event, { status: made.status, error: made.error?.message, messages: made.messages, called });

if (scenario === "client") {
  const live = page({ answer: true });
  live.sendMessage({ text: "How cold is it?" });
  await live.until((made) => text(made).includes("It is "));
  // A reload in step two, to another pod.
  const reloaded = page({ base: other, messages: structuredClone(live.messages) });
  reloaded.resumeStream();
  await reloaded.until((made) => made.status === "streaming" && text(made).includes("It is "));
  say("half");
  await Promise.all([live, reloaded].map((made) => made.until((one) => settled(one) && text(one).includes("cold"))));
  tell("live", live);
  tell("reloaded", reloaded);
  await reloaded.sendMessage({ text: "Thanks." });
  tell("next", reloaded);
} else if (scenario === "killed") {
  // The pod dies in step two, and the page is loaded again, from another pod.
  const live = page({ answer: true });
  live.sendMessage({ text: "How cold is it?" });
  await live.until((made) => text(made).includes("It is "));
  say("half");
  await live.until((made) => made.status === "error");
  const reloaded = page({ base: other, messages: structuredClone(live.messages) });
  reloaded.resumeStream();
  await reloaded.until((made) => made.status === "streaming" && text(made).includes("It is "));
  say("resumed");
  await reloaded.until((made) => settled(made) && text(made).includes("cold"));
  tell("reloaded", reloaded);
} else if (scenario === "stopped") {
  // The answer is stopped in a step with an answered call: nothing is sent by itself.
  const live = page({ answer: true });
  live.sendMessage({ text: "How cold is it?" });
  await live.until((made) => tool(made)?.state === "input-streaming");
  await fetch(`${url}/v1/ai-sdk/chat/chat/stop`, { method: "POST" });
  await live.until(settled);
  tell("stopped", live);
} else {
  const live = page();
  live.sendMessage({ text: "How cold is it?" });
  await live.until((made) => made.messages.length > 1 && settled(made));
  tell("asked", live);
  if (tool(live)?.state === "approval-requested") {
    const approved = scenario === "asking";
    live.addToolApprovalResponse({ id: tool(live).approval.id, approved });
    await live.until((made) => settled(made) && text(made).includes("Done."));
    tell("answered", live);
  }
}
process.exit(0);
