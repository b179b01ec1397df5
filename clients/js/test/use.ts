// What the types must say, for a page and for a route handler. `tsc` refuses a line that is not so.
import Anthropic from "@anthropic-ai/sdk";
import { convertToModelMessages, streamText, type LanguageModel, type ToolSet, type UIMessage } from "ai";
import OpenAI from "openai";
import { type BatonError, type DoneEvent, type Event, follow, sendInput } from "baton-stream";
import { type Message, type Production, ownTools, produce } from "baton-stream/produce";

type Same<A, B> = [A, B] extends [B, A] ? true : false;

export const typed: {
  text: Same<Extract<Event, { type: "text" }>["delta"], string>;
  status: Same<DoneEvent["status"], "completed" | "failed" | "cancelled">;
  noFailure: Same<Extract<Event, { type: "error" }>, never>;
  noReset: Same<Extract<Message, { type: "reset" | "done" }>, never>;
} = { text: true, status: true, noFailure: true, noReset: true };

export async function page(url: string, show: (text: string) => void): Promise<number> {
  const answer = follow(url, { token: async () => "t", snapshot: true, fetch, signal: AbortSignal.timeout(1000) });
  let text = "";
  for await (const event of answer) {
    if (event.type === "snapshot") text = event.text;
    if (event.type === "text") text += event.delta;
    if (event.type === "done" && event.error) show(event.error.code);
    // @ts-expect-error: there is no such type
    if (event.type === "nonsense") return 0;
    show(text);
  }
  return answer.lastEventId;
}

export async function steer(url: string): Promise<number> {
  for await (const event of follow(url, { token: "t" })) {
    if (event.type === "waiting" && event.until) await sendInput(url, { approved: event.for !== null }, { token: "t" });
  }
  // @ts-expect-error: there is nothing to send
  return sendInput(url);
}

export const isOver = (error: BatonError): boolean => error.code === "stream_expired" && !error.retryable;

const create = { url: "https://pods.example.com", metadata: { chat: 42 } };

export async function handler(model: LanguageModel): Promise<Production[]> {
  const abort = new AbortController();
  const result = streamText({ model, prompt: "Hello", abortSignal: abort.signal });
  const openai = new OpenAI();
  // @ts-expect-error: neither `create` nor `append`
  await produce(result.fullStream, {});
  return [
    await produce(result.fullStream, { create, abort }),
    await produce(result.toUIMessageStream(), { append: { url: "https://pods.example.com/v1/stream/a", token: "t" } }),
    await produce(({ signal }) => streamText({ model, prompt: "Hello", abortSignal: signal }).fullStream, { create }),
    await produce(({ signal }) => openai.responses.create({ model: "m", input: "x", stream: true }, { signal }), { create }),
    await produce(openai.chat.completions.create({ model: "m", messages: [], stream: true }), { create }),
    await produce(new Anthropic().messages.create({ model: "m", max_tokens: 1, messages: [], stream: true }), { create }),
    await produce((async function* () { yield "text"; yield { type: "custom", name: "x" } satisfies Message; })(), { create }),
  ];
}

export const prompt = (messages: UIMessage[], tools: ToolSet) => convertToModelMessages(ownTools(messages, tools), { tools });
