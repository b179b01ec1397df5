// The documentation's client against pods: create, follow, and refusals. Prints one JSON object a line.
import type { paths } from "./openapi";
import { ask, baton, follow, sentence, type Event, type Problem } from "./baton.js";

type Answer<Path extends keyof paths, Status extends keyof Responses<Path>> = Responses<Path>[Status] extends {
  content: infer Content;
}
  ? Content
  : never;
type Responses<Path extends keyof paths> = paths[Path] extends { get: { responses: infer Found } } ? Found : never;
type Body<Path extends keyof paths> = paths[Path] extends {
  post: { requestBody?: { content: { "application/json": infer Found } } };
}
  ? Found
  : never;
type Same<A, B> = [A, B] extends [B, A] ? true : false;

// What the types must say. `tsc` refuses a line below that is not so, and a `ts-expect-error` without an error.
const typed: {
  events: Same<Answer<"/v1/streams/{id}/events", 200>, { "text/event-stream": Event }>;
  codeIsNoText: string extends Problem["code"] ? false : true;
  resumed: Same<Extract<Event, { type: "resumed" }>["run"], number>;
  run: Same<Answer<"/v1/streams", 200>["application/json"]["data"][number]["run"], number>;
} = { events: true, codeIsNoText: true, resumed: true, run: true };

function say(event: string, content: object = {}): void {
  console.log(JSON.stringify({ event, ...content }));
}

async function minimalBodies(): Promise<void> {
  // @ts-expect-error: there is no input
  await baton.POST("/v1/streams", { body: { generator: "tap" } });
  const continued: Body<"/v1/streams"> = { input: "Hello", on_worker_lost: "continue" };
  const given: Body<"/v1/responses"> = { input: "Hello" };
  const chat: Body<"/v1/chat/completions"> = { messages: [{ role: "user", content: "Hello" }] };
  const page: Body<"/v1/ai-sdk/chat"> = { messages: [{ role: "user", parts: [{ type: "text", text: "Hello" }] }] };
  const last: Body<"/v1/ai-sdk/chat"> = { id: "c", message: { role: "user", parts: [] } };
  say("bodies", { continued, given, chat, page, last, typed });
}

async function refusals(): Promise<void> {
  const { data, error } = await baton.POST("/v1/streams", { body: { input: "Hello", generator: "nobody" } });
  if (data) return say("created", { id: data.id });
  // @ts-expect-error: there is no such code
  if (error.code === "nonsense") return;
  if (error.code === "unknown_generator") say("refused", { status: error.status, sentence: sentence(error) });
  const { error: none } = await baton.POST("/v1/streams/{id}/token", {
    params: { path: { id: "019a5e2c-0000-7000-8000-00000000000a" } },
  });
  say("no token", { code: none?.code });
}

async function list(chat: number): Promise<void> {
  const body = { input: null, generator: "tap", metadata: { chat } };
  const { data: created } = await baton.POST("/v1/streams", { body });
  const { data } = await baton.GET("/v1/streams", { params: { query: { metadata: { chat }, limit: 5 } } });
  const found = data?.data.map(({ id }) => id);
  say("listed", { found, created: created?.id });
  if (created) await baton.POST("/v1/streams/{id}/cancel", { params: { path: { id: created.id } } });
}

async function chunks(): Promise<void> {
  const id = await ask("Hello", "tap");
  say("created", { id });
  let text = "";
  let count = 0;
  for await (const event of follow(id)) {
    count++;
    if (event.type === "text") text += event.delta;
    if (event.type === "text" && event.delta === "word299 ") say("half");
    if (event.type === "done") say("whole", { text, count, status: event.status, code: event.error?.code });
  }
}

await minimalBodies();
await refusals();
await list(42);
await chunks();
