// What the types must say, for a page and for a route handler. `tsc` refuses a line that is not so.
import Anthropic from "@anthropic-ai/sdk";
import { convertToModelMessages, streamText, type LanguageModel, type ToolSet, type UIMessage } from "ai";
import OpenAI from "openai";
import { type BatonError, type DoneEvent, type Event, type StreamState, cancel, create, follow, input } from "baton-stream";
import { type BatonAnswer, type ToolUse, useBaton } from "baton-stream/react";
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
    if (event.type === "waiting" && event.until) await input(url, { approved: event.for !== null }, { token: "t" });
  }
  // @ts-expect-error: there is nothing to send
  return input(url);
}

export async function ask(token: () => Promise<string>): Promise<StreamState> {
  const request = { generator: "chat", input: [], metadata: { chat: 42 }, on_worker_lost: "fail", token: { scopes: ["read"] } } as const;
  // @ts-expect-error: there is no such way
  await create("/", { ...request, on_worker_lost: "panic" });
  // @ts-expect-error: nothing to answer
  await create("/", { generator: "chat" });
  const stream = await create("https://pods.example.com", { ...request, token: { scopes: ["read", "cancel"] } }, { token });
  for await (const event of follow(stream, { token: stream.token })) if (event.type === "done") return { ...(await cancel(stream)) };
  return cancel({ url: "https://pods.example.com", id: stream.id }, { token });
}

export function useTools(id: string | null): readonly ToolUse[] {
  const { status, tools, error, waiting, stop }: BatonAnswer = useBaton(id === null ? null : { url: "/", id }, {
    token: async () => "t",
    onEvent: (event) => event.type === "custom" && console.log(event.name),
  });
  if (status === "lost" || waiting?.until === null) void stop().then((stream) => stream.status);
  // @ts-expect-error: there is no such status
  if (status === "nonsense") return [];
  return error?.code === "cancelled" ? [] : tools;
}

export const isOver = (error: BatonError): boolean => error.code === "stream_expired" && !error.retryable;

const to = { create: { url: "https://pods.example.com", metadata: { chat: 42 } } };

export async function handler(model: LanguageModel): Promise<Production[]> {
  const abort = new AbortController();
  const result = streamText({ model, prompt: "Hello", abortSignal: abort.signal });
  const openai = new OpenAI();
  // @ts-expect-error: neither `create` nor `append`
  await produce(result.fullStream, {});
  return [
    await produce(result.fullStream, { ...to, abort }),
    await produce(result.toUIMessageStream(), { append: { url: "https://pods.example.com/v1/stream/a", token: "t" } }),
    await produce(({ signal }) => streamText({ model, prompt: "Hello", abortSignal: signal }).fullStream, to),
    await produce(({ signal }) => openai.responses.create({ model: "m", input: "x", stream: true }, { signal }), to),
    await produce(openai.chat.completions.create({ model: "m", messages: [], stream: true }), to),
    await produce(new Anthropic().messages.create({ model: "m", max_tokens: 1, messages: [], stream: true }), to),
    await produce((async function* () { yield "text"; yield { type: "custom", name: "x" } satisfies Message; })(), to),
  ];
}

export const prompt = (messages: UIMessage[], tools: ToolSet) => convertToModelMessages(ownTools(messages, tools), { tools });
