import assert from "node:assert/strict";
import { test } from "node:test";
import { BatonError, follow } from "baton-stream";
import { block, cut, serving, sse } from "./server.mjs";

const DONE = { type: "done", status: "completed", finish_reason: "stop", usage: null };
const EVENTS = [{ type: "text", delta: "Grüße, 🌍" }, { type: "reasoning", delta: "hm\nhm" }, { type: "text", delta: "!" }, DONE];
const after = (cursor) => EVENTS.map((event, index) => block(index + 1, event)).slice(cursor).join("");
const cursorOf = (request) => Number(request.headers["last-event-id"] ?? 0);

async function collect(following) {
  const events = [];
  for await (const event of following) events.push(event);
  return events;
}

function whole(request, response) {
  response.writeHead(200, sse).end(after(cursorOf(request)));
}

test("a connection that is cut at any byte is continued without loss or duplicate", async () => {
  const bytes = Buffer.from(`: baton\nretry: 1\n\n${after(0)}`);
  const first = new Set();
  const handler = (request, response) => {
    const { pathname } = new URL(request.url, "http://x");
    if (first.has(pathname)) return whole(request, response);
    first.add(pathname);
    response.writeHead(200, sse);
    cut(response, bytes.subarray(0, Number(pathname.split("/")[1])));
  };
  await serving(handler, async (url) => {
    const runs = Array.from({ length: bytes.length + 1 }, async (_, at) => {
      const following = follow(`${url}/${at}/events`);
      assert.deepEqual(await collect(following), EVENTS, `cut at ${at}`);
      assert.equal(following.lastEventId, EVENTS.length);
    });
    await Promise.all(runs);
    assert.equal(first.size, bytes.length + 1);
  });
});

test("it stops at `done`, and at a 204", async () => {
  let open;
  const handler = (request, response) => {
    if (cursorOf(request) >= 4) return response.writeHead(204).end();
    open = response;
    response.writeHead(200, sse).write(after(cursorOf(request))); // and stays open
  };
  await serving(handler, async (url) => {
    assert.deepEqual(await collect(follow(`${url}/events`)), EVENTS);
    if (!open.closed) await new Promise((resolve) => open.on("close", resolve));
    assert.deepEqual(await collect(follow(`${url}/events`, { lastEventId: 4 })), []);
  });
});

test("it asks for what the options say, with the cursor in place of the snapshot later", async () => {
  const seen = [];
  const handler = (request, response) => {
    seen.push([request.url, request.headers["last-event-id"], request.headers["x-tenant"]]);
    if (seen.length > 1) return whole(request, response);
    response.writeHead(200, sse);
    cut(response, block(2, { type: "snapshot", text: "Grüße, 🌍" }));
  };
  await serving(handler, async (url) => {
    const options = { snapshot: true, view: "answer", batchWindowMilliseconds: 50, headers: { "x-tenant": "t" } };
    const events = await collect(follow(new URL(`${url}/events?a=b`), options));
    assert.deepEqual(events.map(({ type }) => type), ["snapshot", "text", "done"]);
  });
  const query = "/events?a=b&view=answer&batch_window_ms=50";
  assert.deepEqual(seen, [[`${query}&snapshot=true`, undefined, "t"], [query, "2", "t"]]);
});

test("a refusal is an error with its code, and is not repeated", async () => {
  let requests = 0;
  const handler = (_, response) => {
    requests++;
    response.writeHead(404).end(JSON.stringify({ code: "stream_not_found", detail: "No such stream." }));
  };
  await serving(handler, async (url) => {
    const expected = { name: "BatonError", code: "stream_not_found", status: 404, retryable: false, message: "No such stream." };
    await assert.rejects(collect(follow(`${url}/events`)), expected);
  });
  assert.equal(requests, 1);
});

test("429, 503 and an empty answer with `retry:` are repeated", async () => {
  let requests = 0;
  const handler = (request, response) => {
    requests++;
    if (requests === 1) return response.writeHead(429, { "retry-after": "0" }).end("{}");
    if (requests === 2) return response.writeHead(503).end("<html>");
    if (requests === 3) return response.writeHead(200, sse).end(": baton\nretry: 5\n\n");
    whole(request, response);
  };
  await serving(handler, async (url) => {
    const reasons = [];
    const onDisconnect = ({ error, pauseMilliseconds }) => reasons.push([error.status, pauseMilliseconds > 0]);
    assert.deepEqual(await collect(follow(`${url}/events`, { onDisconnect })), EVENTS);
    assert.deepEqual(reasons, [[429, true], [503, true], [undefined, true]]);
  });
});

test("a pause is at least what `retry:` asks for", async () => {
  let requests = 0;
  const handler = (request, response) => {
    if (requests++) return whole(request, response);
    response.writeHead(200, sse).end("retry: 700\n\n");
  };
  await serving(handler, async (url) => {
    let pause;
    await collect(follow(`${url}/events`, { onDisconnect: ({ pauseMilliseconds }) => (pause = pauseMilliseconds) }));
    assert.ok(pause >= 700);
  });
});

test("a token that a pod refuses is replaced once", async () => {
  const used = [];
  const handler = (request, response) => {
    used.push(request.headers.authorization);
    if (request.headers.authorization !== "Bearer good") return response.writeHead(401).end('{"code": "unauthenticated"}');
    whole(request, response);
  };
  await serving(handler, async (url) => {
    const tokens = ["old", "good"];
    assert.deepEqual(await collect(follow(`${url}/events`, { token: async () => tokens.shift() })), EVENTS);
    assert.deepEqual(used, ["Bearer old", "Bearer good"]);
    await assert.rejects(collect(follow(`${url}/events`, { token: () => "bad" })), { code: "unauthenticated" });
    await assert.rejects(collect(follow(`${url}/events`, { token: "bad" })), { code: "unauthenticated" });
    assert.equal(used.length, 5);
  });
});

test("it gives up when no pod answers, and says why", async () => {
  const options = { patienceMilliseconds: 300 };
  await assert.rejects(collect(follow("http://127.0.0.1:1/events", options)), (error) => {
    assert.ok(error instanceof BatonError);
    assert.equal(error.code, "unreachable");
    assert.ok(error.retryable && error.cause instanceof BatonError);
    return true;
  });
});

test("a stream that cannot be followed to its end is an error", async () => {
  const failure = 'data: {"type":"error","error":{"code":"log_damaged","message":"A gap."}}\n\n';
  await serving((_, response) => response.writeHead(200, sse).end(failure), async (url) => {
    await assert.rejects(collect(follow(`${url}/events`)), { code: "log_damaged", message: "A gap.", retryable: false });
  });
});

test("what is no event stream is an error", async () => {
  const answers = [["text/html", "<p>"], [sse["content-type"], "id: 1\ndata: {\n\n"], [sse["content-type"], 'id: x\ndata: {"type":"text"}\n\n']];
  for (const [type, body] of answers) {
    await serving((_, response) => response.writeHead(200, { "content-type": type }).end(body), async (url) => {
      await assert.rejects(collect(follow(`${url}/events`)), { code: "unexpected_response" });
    });
  }
  assert.throws(() => follow("/v1/streams/x/events"), { code: "invalid_url" });
});

test("an abort ends the iteration and the connection, also between two connections", async () => {
  const handler = (_, response) => response.writeHead(200, sse).write(block(1, EVENTS[0]));
  await serving(handler, async (url) => {
    const controller = new AbortController();
    const following = follow(`${url}/events`, { signal: controller.signal });
    await following.next();
    const waiting = following.next();
    controller.abort(new Error("enough"));
    await assert.rejects(waiting, { message: "enough" });
  });
  const signal = AbortSignal.timeout(50);
  await assert.rejects(collect(follow("http://127.0.0.1:1/events", { signal })), { name: "TimeoutError" });
});

test("leaving the loop closes the connection", async () => {
  let closed;
  const handler = (_, response) => {
    closed = new Promise((resolve) => response.on("close", resolve));
    response.writeHead(200, sse).write(block(1, EVENTS[0]));
  };
  await serving(handler, async (url) => {
    for await (const event of follow(`${url}/events`)) {
      assert.equal(event.type, "text");
      break;
    }
    await closed;
  });
});

test("a pause that is too long for a timer is not skipped", async () => {
  let asked = 0;
  const handler = (_, response) => {
    asked++;
    response.writeHead(503, { "retry-after": "9999999999" }).end("{}");
  };
  await serving(handler, async (url) => {
    const following = follow(`${url}/events`, { signal: AbortSignal.timeout(300) });
    await assert.rejects(collect(following), { name: "TimeoutError" });
  });
  assert.equal(asked, 1);
});
