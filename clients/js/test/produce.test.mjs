import assert from "node:assert/strict";
import { test } from "node:test";
import { BatonError, produce } from "baton-stream/produce";
import { AppendServer, ID, serving } from "./server.mjs";

const WORDS = Array.from({ length: 60 }, (_, index) => `word${index} `);
const FINISH = { type: "finish", finish_reason: "stop" };
const said = (log) => log.filter(({ type }) => type === "text").map(({ delta }) => delta).join("");
const turn = () => new Promise((resolve) => setImmediate(resolve));

async function* words(list = WORDS) {
  for (const word of list) {
    await turn();
    yield word;
  }
}

/** A source that a test feeds. */
function held() {
  const waiting = [];
  let wake = () => {};
  const source = {
    returned: 0,
    push: (...items) => (waiting.push(...items), wake()),
    async *items() {
      try {
        for (;;) {
          while (waiting.length) {
            const item = waiting.shift();
            if (item === null) return;
            yield item;
          }
          await new Promise((resolve) => (wake = resolve));
        }
      } finally {
        source.returned++;
      }
    },
  };
  return source;
}

const producing = (server, work) => serving(server.handle, work);

test("a stream is created and known before its source ends, and has everything once", async () => {
  const server = new AppendServer();
  const source = held();
  await producing(server, async (url) => {
    const create = { url, token: "key", metadata: { chat: 42 }, idleTimeoutSeconds: 30, viewers: { view: "answer" } };
    const production = await produce(source.items(), { create });
    assert.equal(production.id, ID);
    assert.equal(production.eventsUrl, `/v1/streams/${ID}/events`);
    assert.equal(production.token, "view-token");
    source.push("Hello ", { type: "reasoning", delta: "hm" }, { type: "finish", finish_reason: "length" }, { type: "usage", input_tokens: 1 });
    await server.reaches(2);
    source.push("world", null);
    const result = await production.done;
    assert.deepEqual(result, { id: ID, status: "completed", finishReason: "length", error: null, accepted: 5 });
  });
  const finish = { type: "finish", finish_reason: "length" };
  assert.deepEqual(server.log.map(({ type }) => type), ["text", "reasoning", "usage", "text", "finish"]);
  assert.deepEqual(server.log.at(-1), finish);
  assert.ok(server.stream.closed);
  const [{ body, headers }] = server.creates;
  assert.deepEqual(body, { generator: "external", input: null, metadata: { chat: 42 }, idle_timeout_seconds: 30, token: { view: "answer" } });
  assert.equal(headers.authorization, "Bearer key");
  const append = server.requests.find(({ url, method }) => method === "POST" && url.startsWith("/v1/stream/"));
  assert.equal(append.headers.authorization, "Bearer append-token");
  assert.equal(append.headers["content-type"], 'application/json; profile="urn:baton:events"');
});

test("what comes while an append is in flight goes into the next", async () => {
  let release;
  const server = new AppendServer();
  const handle = server.handle;
  server.handle = async (request, response) => {
    if (request.headers["producer-seq"] === "0") await new Promise((resolve) => (release = resolve));
    return handle(request, response);
  };
  const source = held();
  await serving((...pair) => server.handle(...pair), async (url) => {
    const { done } = await produce(source.items(), { create: { url } });
    source.push("first ");
    while (!release) await turn();
    source.push(...WORDS, null);
    for (let n = 0; n < 200; n++) await turn();
    release();
    await done;
  });
  assert.equal(server.appends, 2);
  assert.equal(said(server.log), `first ${WORDS.join("")}`);
});

for (const seed of [1, 2, 3]) {
  test(`lost and repeated responses, 429 and 503 cost no event and repeat none (${seed})`, async () => {
    let state = seed;
    const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
    const faults = ["before", "after", 429, 503];
    const one = async () => {
      const server = new AppendServer({ fault: () => (random() < 0.2 ? faults[Math.floor(random() * 4)] : null) });
      await producing(server, async (url) => {
        const { done } = await produce(words(), { create: { url } });
        assert.equal((await done).status, "completed");
      });
      assert.deepEqual(server.log, [...WORDS.map((delta) => ({ type: "text", delta })), FINISH]);
    };
    await Promise.all(Array.from({ length: 10 }, one));
  });
}

for (const lost of ["before", "after"]) {
  test(`the last append is repeated if its connection breaks ${lost} it`, async () => {
    const server = new AppendServer({ fault: (n) => (n < 3 ? lost : null) });
    await producing(server, async (url) => {
      const { done } = await produce(words(["one"]), { create: { url } });
      assert.equal((await done).status, "completed");
    });
    assert.deepEqual(server.log, [{ type: "text", delta: "one" }, FINISH]);
  });
}

test("a create is repeated with the same key", async () => {
  const server = new AppendServer();
  server.createFault = (n) => [503, "after", null][n];
  await producing(server, async (url) => void (await (await produce(words(["x"]), { create: { url } })).done));
  assert.equal(server.creates.length, 3);
  assert.equal(new Set(server.creates.map(({ key }) => key)).size, 1);
});

test("a refused create throws, and the source is not begun", async () => {
  const server = new AppendServer();
  server.createFault = () => 403;
  let begun = false;
  await producing(server, async (url) => {
    const creating = produce(() => (begun = true, words()), { create: { url } });
    await assert.rejects(creating, (error) => error instanceof BatonError && error.status === 403);
  });
  assert.ok(!begun);
});

test("a zombie with an older epoch writes nothing, and its source is stopped", async () => {
  const server = new AppendServer();
  await producing(server, async (url) => {
    const source = held();
    const append = { url: `${url}/v1/stream/${ID}`, token: "t" };
    const zombie = await produce(source.items(), { append, producerId: "p", epoch: 1 });
    source.push("old ");
    await server.reaches(1);
    const heir = await produce(words(["new"]), { append, producerId: "p", epoch: 2 });
    await heir.done;
    source.push("late ");
    await assert.rejects(zombie.done, { code: "producer_fenced", status: 403 });
    assert.ok(zombie.signal.aborted);
    source.push("unread "); // a generator that waits returns at its next yield
    while (!source.returned) await turn();
  });
  assert.equal(said(server.log), "old new");
});

const CANCELLED = { status: "cancelled", finish_reason: "cancelled", error: null };

test("a cancelled stream stops a source that is waiting", async () => {
  const server = new AppendServer();
  const abort = new AbortController();
  await producing(server, async (url) => {
    let given;
    const source = (context) => {
      given = context;
      return (async function* () {
        yield "begun ";
        await new Promise((_, reject) => context.signal.addEventListener("abort", () => reject(context.signal.reason)));
      })();
    };
    const production = await produce(source, { create: { url }, abort });
    await server.reaches(1);
    while (!server.held.size) await turn();
    server.end(CANCELLED);
    const result = await production.done;
    assert.deepEqual([result.status, result.finishReason, result.accepted], ["cancelled", "cancelled", 1]);
    assert.equal(given.id, ID);
    assert.equal(given.signal, abort.signal);
    assert.equal(abort.signal.reason.code, "cancelled");
  });
  assert.equal(said(server.log), "begun ");
});

test("an append to a cancelled stream stops the source, too", async () => {
  const server = new AppendServer();
  const source = held();
  await producing(server, async (url) => {
    // An address without an id has nothing to wait at.
    const handle = server.handle;
    await serving((request, response) => ((request.url = request.url.replace("/v1/stream/a", `/v1/stream/${ID}`)), handle(request, response)), async (other) => {
      const production = await produce(source.items(), { append: { url: `${other}/v1/stream/a` } });
      assert.deepEqual([production.id, production.eventsUrl], [null, null]);
      source.push("begun ");
      await server.reaches(1);
      server.end(CANCELLED);
      source.push("more ");
      const result = await production.done;
      assert.deepEqual([result.status, result.finishReason], ["cancelled", "cancelled"]);
    });
    assert.ok(url);
  });
  source.push("unread ");
  while (!source.returned) await turn();
});

test("a stream that failed elsewhere says why", async () => {
  const server = new AppendServer();
  const source = held();
  await producing(server, async (url) => {
    const { done } = await produce(source.items(), { create: { url } });
    while (!server.held.size) await turn();
    const error = { code: "max_duration", message: "Too long." };
    server.end({ status: "failed", finish_reason: "error", error });
    const result = await done;
    assert.deepEqual([result.status, result.error], ["failed", error]);
  });
});

test("a source that throws ends the stream as failed, without its message", async () => {
  const server = new AppendServer();
  const broken = async function* () {
    yield "half ";
    throw new Error("password=secret");
  };
  await producing(server, async (url) => {
    const result = await (await produce(broken(), { create: { url } })).done;
    assert.equal(result.status, "failed");
    assert.equal(result.error.code, "producer_error");
    assert.equal(result.cause.message, "password=secret");
  });
  assert.equal(said(server.log), "half ");
  assert.equal(server.log.at(-1).type, "error");
  assert.doesNotMatch(JSON.stringify(server.log), /secret/);
  assert.ok(server.stream.closed);
});

test("errors of SDKs have codes by their status, and `onError` may choose others", async () => {
  const cases = [[{ status: 429 }, "provider_rate_limited"], [{ statusCode: 503 }, "provider_error"], [{ status: 401 }, "provider_auth_failed"], [{ cause: { status: 400 } }, "provider_invalid_request"], [{ lastError: { statusCode: 408 } }, "provider_timeout"], [{ statusCode: 200, cause: new TypeError("terminated") }, "provider_cut_off"]];
  for (const [given, code] of cases) {
    const server = new AppendServer();
    const source = () => Promise.reject(Object.assign(new Error("x"), given));
    await producing(server, async (url) => assert.equal((await (await produce(source, { create: { url } })).done).error.code, code));
    assert.equal(server.log.at(-1).code, code);
  }
  const server = new AppendServer();
  const onError = () => ({ code: "tired", message: "Later." });
  await producing(server, async (url) => (await produce(() => { throw new Error("x"); }, { create: { url }, onError })).done);
  assert.deepEqual(server.log, [{ type: "error", code: "tired", message: "Later." }]);
});

test("the caller's abort ends the stream as failed", async () => {
  for (const name of ["signal", "abort"]) {
    const server = new AppendServer();
    const source = held();
    const controller = new AbortController();
    await producing(server, async (url) => {
      const { done, signal } = await produce(source.items(), { create: { url }, [name]: name === "signal" ? controller.signal : controller });
      source.push("begun ");
      await server.reaches(1);
      controller.abort();
      const result = await done;
      assert.deepEqual([result.status, result.error.code], ["failed", "aborted"]);
      assert.ok(signal.aborted);
    });
    assert.deepEqual(server.log.map(({ type, code }) => code ?? type), ["text", "aborted"]);
  }
});

test("a server that lost appends is noticed, and the stream ends as failed", async () => {
  const server = new AppendServer();
  const source = held();
  await producing(server, async (url) => {
    const { done } = await produce(source.items(), { create: { url } });
    source.push("one ");
    await server.reaches(1);
    server.stream.producers.clear();
    server.stream.log.length = 0;
    while (!(await Promise.race([done, turn()]))) source.push("two ");
    assert.equal((await done).error.code, "producer_gap");
  });
  assert.deepEqual(server.log.map(({ code }) => code), ["producer_gap"]);
});

test("a failover that lost appends is reported as the end that the pods gave the stream", async () => {
  const rewound = { status: "failed", finish_reason: "error", error: { code: "log_rewound", message: "The end of this answer was lost. Ask again." } };
  // Until the pods know that the log is not complete, they refuse.
  const server = new AppendServer({ fault: (n) => (n === 1 || n === 2 ? 503 : null) });
  const source = held();
  // An address without an id has nothing to wait at.
  const handle = (request, response) => ((request.url = `/v1/stream/${ID}`), server.handle(request, response));
  await serving(handle, async (url) => {
    const { done } = await produce(source.items(), { append: { url: `${url}/v1/stream/a` } });
    source.push("one ");
    await server.reaches(1);
    server.end(rewound);
    source.push("two ");
    const result = await done;
    assert.deepEqual([result.status, result.error.code, result.accepted], ["failed", "log_rewound", 1]);
  });
  assert.equal(server.appends, 4);
  assert.equal(said(server.log), "one ");
});

test("a refused message ends the stream as failed; too many at once are divided", async () => {
  const invalid = { status: 400, problem: { code: "invalid_event", detail: "Message 1 has no type." } };
  const large = { status: 413, problem: { code: "request_too_large" } };
  const server = new AppendServer({ refuse: (messages) => (messages.some(({ type }) => !type) ? invalid : messages.length > 2 ? large : null) });
  await producing(server, async (url) => {
    const source = (async function* () {
      yield* WORDS.slice(0, 9);
      yield { type: "text", delta: "x" };
      yield {};
      yield "never";
    })();
    const result = await (await produce(source, { create: { url }, format: "events" })).done;
    assert.deepEqual([result.status, result.error.code], ["failed", "invalid_event"]);
  });
  assert.equal(server.log.at(-1).code, "invalid_event");
  assert.ok(!said(server.log).includes("never"));
});

test("a source is not read far ahead of the appends", async () => {
  let release;
  const server = new AppendServer();
  let read = 0;
  const source = (async function* () {
    for (; read < 100; read++) yield "x".repeat(100_000);
  })();
  const handler = async (request, response) => {
    if (request.headers["producer-seq"] === "0") await new Promise((resolve) => (release = resolve));
    return server.handle(request, response);
  };
  await serving(handler, async (url) => {
    const { done } = await produce(source, { create: { url } });
    while (!release) await turn();
    for (let n = 0; n < 500; n++) await turn();
    assert.ok(read < 30, `${read} were read`);
    release();
    await done;
  });
  assert.equal(said(server.log).length, 10_000_000);
});

test("a character that is cut in two is whole", async () => {
  const server = new AppendServer();
  const halves = ["a\uD83C", { type: "reasoning", delta: "b" }, "\uDF0D", "\uD83C", "\uDF0Dc"];
  await producing(server, async (url) => (await produce(words(halves), { create: { url } })).done);
  assert.equal(said(server.log), "a🌍🌍c");
});

test("a ReadableStream and a promise are sources; without a reader it is cancelled", async () => {
  const server = new AppendServer();
  let cancelled;
  const stream = new ReadableStream({
    start: (controller) => controller.enqueue("begun "),
    cancel: (reason) => void (cancelled = reason),
  });
  await producing(server, async (url) => {
    const { done } = await produce(Promise.resolve(stream), { create: { url } });
    await server.reaches(1);
    while (!server.held.size) await turn();
    server.end(CANCELLED);
    await done;
  });
  assert.ok(cancelled);
});

test("an unknown source is refused by name, and the stream ends", async () => {
  for (const source of [words([{ what: 1 }]), 42]) {
    const server = new AppendServer();
    await producing(server, async (url) => {
      const result = await (await produce(source, { create: { url } })).done;
      assert.equal(result.error.code, "unknown_format");
    });
    assert.equal(server.log.at(-1).code, "unknown_format");
  }
});

test("an end that cannot be written rejects `done`, and ends no process", async () => {
  const server = new AppendServer({ fault: () => "before" });
  await producing(server, async (url) => {
    const { done, signal } = await produce(words(), { create: { url }, patienceMilliseconds: 200 });
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    await turn();
    await assert.rejects(done, { code: "unreachable" });
  });
});

test("a response that no pod gave to an append is no success", async () => {
  const pages = [
    (response) => response.writeHead(200, { "content-type": "text/html" }).end("<h1>Sign in</h1>"),
    (response) => response.writeHead(302, { location: "/read" }).end(), // `fetch` asks again with GET
  ];
  for (const page of pages) {
    const server = new AppendServer();
    const handle = (request, response) => {
      if (request.url === "/read") return response.writeHead(200, { "stream-next-offset": "019a5e2c0000_0000000000" }).end("[]");
      return request.url.startsWith("/v1/stream/") ? page(response) : server.handle(request, response);
    };
    await serving(handle, async (url) => {
      const { done } = await produce(words(), { create: { url } });
      await assert.rejects(done, { code: "unexpected_response", retryable: false });
    });
  }
});
