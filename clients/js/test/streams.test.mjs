import assert from "node:assert/strict";
import { test } from "node:test";
import { cancel, create, follow, input } from "baton-stream";
import { AppendServer, ID, block, cut, serving, sse, textOf } from "./server.mjs";

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
    assert.equal(await input(events, { a: [1] }, { token: () => "t" }), 1);
    assert.equal(await input(new URL(events), "go on", { idempotencyKey: "mine" }), 2);
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
    await assert.rejects(input(`${url}/events`, 1), expected);
    await assert.rejects(input(`${url}/v1/streams/x`, 1), { code: "invalid_url" });
  });
  assert.equal(server.requests.length, 1);
});

test("one stream is created, though the response is lost, and its address is that of the pods that were given", async () => {
  const server = new AppendServer();
  server.createFault = (n) => [503, "after"][n];
  await serving(server.handle, async (url) => {
    const created = await create(url, { generator: "chat", input: [1], metadata: { chat: 42 } }, { token: () => "key" });
    const expected = { id: ID, url: `${url}/`, eventsUrl: `${url}/v1/streams/${ID}/events`, token: "view-token" };
    assert.deepEqual(created, expected);
    await create(new URL(url), { input: "x" }, { idempotencyKey: "mine", headers: { "x-mine": "1" } });
  });
  const [first, second, third, fourth] = server.creates;
  assert.deepEqual(first.body, { generator: "chat", input: [1], metadata: { chat: 42 } });
  assert.equal(first.headers.authorization, "Bearer key");
  assert.deepEqual([second, third].map(({ key, body }) => [key, body]), [first, first].map(({ key, body }) => [key, body]));
  assert.deepEqual([fourth.key, fourth.headers["x-mine"], fourth.body], ["mine", "1", { input: "x" }]);
  assert.notEqual(first.key, "mine");
});

test("a refused create is an error with its code", async () => {
  const refuse = (_, response) => response.writeHead(422).end(JSON.stringify({ code: "unknown_generator", detail: "No." }));
  await serving(refuse, async (url) => {
    await assert.rejects(create(url, { input: 1 }), { name: "BatonError", code: "unknown_generator", status: 422 });
  });
  await assert.rejects(create("/pods", { input: 1 }), { code: "invalid_url" });
});

test("a stream is cancelled, though the response is lost", async () => {
  const urls = [];
  const handler = async (request, response) => {
    await textOf(request);
    urls.push(`${request.method} ${request.url} ${request.headers.authorization}`);
    if (urls.length === 1) return cut(response, Buffer.alloc(0));
    response.writeHead(202).end(JSON.stringify({ id: ID, status: "running" }));
  };
  await serving(handler, async (url) => {
    assert.equal((await cancel({ url, id: ID }, { token: "t" })).status, "running");
  });
  assert.deepEqual(urls, Array(2).fill(`POST /v1/streams/${ID}/cancel Bearer t`));
});

test("every call takes a stream's address in each of its forms, below any path", async () => {
  const asked = [];
  const handler = (request, response) => {
    asked.push(request.url);
    if (request.method === "POST") return response.writeHead(200).end(JSON.stringify({ number: 1, status: "running" }));
    response.writeHead(200, sse).end(block(1, { type: "done", status: "completed", finish_reason: "stop" }));
  };
  await serving(handler, async (url) => {
    const events = `${url}/p/v1/streams/${ID}/events`;
    const created = { id: ID, url: `${url}/p/`, eventsUrl: events, token: null };
    for (const stream of [events, new URL(events), { url: `${url}/p`, id: ID }, { url: new URL(`${url}/p/?x=1`), id: ID }, created]) {
      for await (const event of follow(stream)) assert.equal(event.type, "done");
      await input(stream, 1);
      await cancel(stream);
    }
  });
  const each = ["events", "inputs", "cancel"].map((action) => `/p/v1/streams/${ID}/${action}`);
  assert.deepEqual(asked, [...each, ...each, ...each, ...each, ...each]);
  assert.throws(() => follow({ url: "http://x", id: "" }), { code: "invalid_url" });
  await assert.rejects(cancel("http://x/v1/streams/y"), { code: "invalid_url" });
});

test("an aborted signal ends the tries", async () => {
  const server = inbox(() => 503);
  const abort = new AbortController();
  await serving(server.handler, async (url) => {
    setTimeout(() => abort.abort(new Error("left")), 50);
    await assert.rejects(input(`${url}/events`, 1, { signal: abort.signal }), { message: "left" });
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
