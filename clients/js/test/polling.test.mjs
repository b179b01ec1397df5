import assert from "node:assert/strict";
import { test } from "node:test";
import { follow } from "baton-stream";

const base = { status: "running", text: "", reasoning: "", tool_calls: [], tool_results: [], last_event_id: 0, usage: null, timings: null, error: null, finish_reason: null };
const call = { id: "c1", name: "get", arguments: "{" };
const STATES = [
  { ...base, status: "queued" },
  { ...base, reasoning: "hm", last_event_id: 1 },
  { ...base, reasoning: "hm", text: "Hel", tool_calls: [call], last_event_id: 3 },
  { ...base, reasoning: "hm", text: "Hello", tool_calls: [{ ...call, arguments: "{}" }], tool_results: [{ id: "c1", result: 1 }], last_event_id: 6 },
  { ...base, text: "Again", last_event_id: 8, interruption: "worker_lost" },
  { ...base, status: "completed", text: "Again!", last_event_id: 10, finish_reason: "stop", timings: { tokens: 2 }, usage: { input_tokens: 1 } },
];

/** A `fetch` like React Native's: its responses have no body that can be read as it arrives. */
function without(states, urls = []) {
  const waiting = [...states];
  return async (url) => {
    urls.push(url);
    const headers = new Headers({ "content-type": "text/event-stream" });
    const state = new URL(url).pathname.endsWith("/events") ? null : waiting.shift();
    if (state === undefined) throw new TypeError("network");
    if (typeof state === "number") return { ok: false, status: state, headers, text: async () => "{}" };
    return { ok: true, status: 200, headers, text: async () => JSON.stringify(state) };
  };
}

async function collect(following) {
  const events = [];
  for await (const event of following) events.push([following.lastEventId, event]);
  return events;
}

test("without a body the stream is polled, and its events add up to the same answer", async () => {
  const urls = [];
  const events = await collect(follow("http://pod/p/v1/streams/x/events?token=t&view=full", { fetch: without(STATES, urls) }));
  assert.deepEqual(events, [
    [1, { type: "reasoning", delta: "hm" }],
    [3, { type: "text", delta: "Hel" }],
    [3, { type: "tool_call", index: 0, id: "c1", name: "get", arguments_delta: "{" }],
    [6, { type: "text", delta: "lo" }],
    [6, { type: "tool_call", index: 0, arguments_delta: "}" }],
    [6, { type: "tool_result", id: "c1", result: 1 }],
    [8, { type: "reset", reason: "worker_lost" }],
    [8, { type: "text", delta: "Again" }],
    [10, { type: "text", delta: "!" }],
    [10, { type: "done", status: "completed", finish_reason: "stop", usage: { input_tokens: 1 }, timings: { tokens: 2 } }],
  ]);
  assert.equal(urls[1], "http://pod/p/v1/streams/x?token=t&wait=2");
  assert.equal(urls.length, 1 + STATES.length);
});

test("a poll shows when a stream waits, and when it continues", async () => {
  const wait = { since: "2026-12-01T00:00:00Z", until: "2026-12-02T00:00:00Z" };
  const states = [
    { ...base, text: "May I?", last_event_id: 1 },
    { ...base, status: "waiting", text: "May I?", last_event_id: 2, waiting: { for: "yes", ...wait } },
    { ...base, status: "waiting", text: "May I?", last_event_id: 2, waiting: { for: "yes", ...wait } },
    { ...base, status: "queued", text: "May I?", last_event_id: 2, waiting: null, interruption: "input" },
    { ...base, text: "May I? Yes", last_event_id: 4, run: 2, waiting: null, interruption: "input" },
    { ...base, status: "completed", text: "May I? Yes", last_event_id: 5, finish_reason: "stop", waiting: null },
  ];
  const events = await collect(follow("http://pod/v1/streams/x/events", { fetch: without(states) }));
  assert.deepEqual(events.map(([, { type, delta, reason, until }]) => delta ?? reason ?? until ?? type), [
    "May I?", wait.until, "input", " Yes", "done",
  ]);
});

test("with a cursor or `snapshot` the first event holds the answer so far", async () => {
  for (const options of [{ lastEventId: 2 }, { snapshot: true }]) {
    const events = await collect(follow("http://pod/v1/streams/x/events", { ...options, fetch: without(STATES.slice(4)) }));
    assert.deepEqual(events.map(([, { type }]) => type), ["snapshot", "text", "done"]);
    assert.equal(events[0][1].text, "Again");
  }
});

test("a failed poll is repeated, and what was yielded is not", async () => {
  const states = [STATES[2], 503, 429, STATES[3], { ...STATES[3], status: "failed", finish_reason: "error", error: { code: "tired", message: "m" } }];
  const events = await collect(follow("http://pod/v1/streams/x/events", { fetch: without(states) }));
  assert.equal(events.filter(([, { type }]) => type === "text").map(([, { delta }]) => delta).join(""), "Hello");
  assert.deepEqual(events.at(-1)[1].error, { code: "tired", message: "m" });
});

test("an address that is not of events cannot be polled", async () => {
  await assert.rejects(collect(follow("http://pod/other", { fetch: async () => ({ ok: true, status: 200, headers: new Headers({ "content-type": "text/event-stream" }) }) })), { code: "invalid_url" });
});

test("without such bodies in the global fetch, no event stream is requested", async () => {
  const [fetch, response] = [globalThis.fetch, globalThis.Response];
  const urls = [];
  globalThis.fetch = without([STATES.at(-1)], urls);
  globalThis.Response = class {};
  try {
    await collect(follow("http://pod/v1/streams/x/events"));
  } finally {
    Object.assign(globalThis, { fetch, Response: response });
  }
  assert.deepEqual(urls, ["http://pod/v1/streams/x?wait=2"]);
});

test("a pod that answers at once is not asked in a loop", async () => {
  const running = JSON.stringify({ ...base, text: "Hel", last_event_id: 1 });
  const [began, headers, signal] = [Date.now(), new Headers({ "content-type": "text/event-stream" }), AbortSignal.timeout(900)];
  let asked = 0;
  const fetch = async () => {
    asked++;
    await new Promise((resolve) => setTimeout(resolve)); // let the signal fire, even if this is asked without a pause
    return { ok: true, status: 200, headers, text: async () => running };
  };
  await assert.rejects(collect(follow("http://pod/v1/streams/x/events", { fetch, signal })), { name: "TimeoutError" });
  assert.ok(asked <= 2 + (Date.now() - began) / 400, `asked ${asked} times`);
});
