import assert from "node:assert/strict";
import { test } from "node:test";
import { follow, sendInput } from "baton-stream";
import { block, cut, serving, sse, textOf } from "./server.mjs";

/** A server that keeps inputs, each key once. `fault(n)` says what happens to request n: nothing, "after", or a status. */
function inbox(fault = () => null) {
  const server = { requests: [], inputs: new Map() };
  server.handler = async (request, response) => {
    const { url, headers } = request;
    const { data } = JSON.parse(await textOf(request));
    server.requests.push({ url, key: headers["idempotency-key"], authorization: headers.authorization });
    const happens = fault(server.requests.length);
    if (typeof happens === "number") return response.writeHead(happens).end(JSON.stringify({ code: "stream_ended", detail: "Over." }));
    if (!server.inputs.has(headers["idempotency-key"])) server.inputs.set(headers["idempotency-key"], data);
    if (happens === "after") return cut(response, Buffer.alloc(0));
    const number = [...server.inputs.keys()].indexOf(headers["idempotency-key"]) + 1;
    response.writeHead(201).end(JSON.stringify({ number }));
  };
  return server;
}

test("an input is sent once, though its response is lost", async () => {
  const server = inbox((request) => ({ 1: 503, 2: "after" })[request] ?? null);
  await serving(server.handler, async (url) => {
    const events = `${url}/p/v1/streams/x/events?view=answer&lastEventId=3`;
    assert.equal(await sendInput(events, { a: [1] }, { token: () => "t" }), 1);
    assert.equal(await sendInput(new URL(events), "go on", { idempotencyKey: "mine" }), 2);
  });
  assert.deepEqual([...server.inputs.values()], [{ a: [1] }, "go on"]);
  const [{ url, key, authorization }, , third, fourth] = server.requests;
  assert.deepEqual([url, authorization, third.key], ["/p/v1/streams/x/inputs", "Bearer t", key]);
  assert.equal(fourth.key, "mine");
});

test("a refused input is an error with its code, and is not repeated", async () => {
  const server = inbox(() => 409);
  await serving(server.handler, async (url) => {
    const expected = { name: "BatonError", code: "stream_ended", status: 409, retryable: false, message: "Over." };
    await assert.rejects(sendInput(`${url}/events`, 1), expected);
    await assert.rejects(sendInput(`${url}/v1/streams/x`, 1), { code: "invalid_url" });
  });
  assert.equal(server.requests.length, 1);
});

test("an aborted signal ends the tries", async () => {
  const server = inbox(() => 503);
  const abort = new AbortController();
  await serving(server.handler, async (url) => {
    setTimeout(() => abort.abort(new Error("left")), 50);
    await assert.rejects(sendInput(`${url}/events`, 1, { signal: abort.signal }), { message: "left" });
  });
});

test("a wait is an event, and what follows it follows", async () => {
  const events = [
    { type: "text", delta: "May I?" },
    { type: "waiting", for: { type: "approval", calls: ["c"] }, until: "2027-01-01T00:00:00.000Z" },
    { type: "resumed", run: 2, reason: "input" },
    { type: "text", delta: " Done." },
    { type: "done", status: "completed", finish_reason: "stop" },
  ];
  const blocks = events.map((event, index) => block(index + 1, event));
  const handler = (request, response) => {
    response.writeHead(200, sse);
    const cursor = Number(request.headers["last-event-id"] ?? 0);
    // The connection of a stream that waits is closed at some time, as any old one is.
    if (!cursor) return cut(response, Buffer.from(`retry: 1\n\n${blocks.slice(0, 2).join("")}`));
    response.end(blocks.slice(cursor).join(""));
  };
  await serving(handler, async (url) => {
    const seen = [];
    for await (const event of follow(`${url}/events`)) seen.push(event);
    assert.deepEqual(seen, events);
  });
});
