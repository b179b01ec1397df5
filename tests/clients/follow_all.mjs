// Follows one answer at once: `useChat` from a route handler, `EventSource` and OpenAI's client from a pod.
//
// usage: follow_all.mjs APP POD KEY QUESTION HALF. `HALF` is the word of which each says that it has it.
import { EventSource } from "eventsource";
import OpenAI from "openai";
import { chatOf } from "./abstract_chat.mjs";
import { say } from "./say.mjs";

const [app, pod, key, question, half] = process.argv.slice(2);
const { sdk, Chat, State } = await chatOf("7");

function grown(viewer, text, delta) {
  if (delta.includes(half)) say("half", { viewer });
  return text + delta;
}

async function byUseChat(chat) {
  const answer = () => chat.messages.findLast(({ role }) => role === "assistant");
  const text = () => (answer()?.parts ?? []).map((part) => (part.type === "text" ? part.text : "")).join("");
  const sent = chat.sendMessage({ text: question });
  void chat.until(() => text().includes(half)).then(() => say("half", { viewer: "useChat" }));
  await sent;
  const { parts, metadata } = answer();
  say("end", { viewer: "useChat", text: text(), parts, status: metadata.status, error: chat.error?.message ?? null });
}

async function byEventSource(id) {
  const authorized = (url, init) => fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${key}` } });
  const source = new EventSource(`${pod}/v1/streams/${id}/events`, { fetch: authorized });
  const events = [];
  let text = "";
  const done = await new Promise((resolve) => {
    source.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      events.push(event);
      if (event.type === "text") text = grown("EventSource", text, event.delta);
      if (event.type === "done") resolve(event);
    };
  });
  source.close();
  say("end", { viewer: "EventSource", text, events, status: done.status, error: done.error ?? null });
}

async function byOpenAi(id) {
  const client = new OpenAI({ baseURL: `${pod}/v1`, apiKey: key, maxRetries: 0 });
  let [text, reasoning, response] = ["", ""];
  for await (const event of await client.responses.retrieve(`resp_${id.replaceAll("-", "")}`, { stream: true })) {
    response = event.response ?? response;
    if (event.type === "response.output_text.delta") text = grown("OpenAI", text, event.delta);
    if (event.type.startsWith("response.reasoning") && event.type.endsWith(".delta")) reasoning += event.delta;
  }
  const { status, error, output } = response;
  say("end", { viewer: "OpenAI", text, reasoning, kinds: output.map(({ type }) => type), status, error });
}

const chat = new Chat({
  id: "42",
  state: new State([]),
  transport: new sdk.DefaultChatTransport({ api: `${app}/api/chat` }),
});
const following = byUseChat(chat);
await chat.until(() => chat.messages.at(-1)?.metadata || chat.status === "error");
const id = chat.messages.at(-1).metadata.streamId;
say("id", { id });
await Promise.all([following, byEventSource(id), byOpenAi(id)]);
say("over");
process.exit(0);
