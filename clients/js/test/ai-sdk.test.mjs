// The transport for useChat: one answer over many connections, with real chats of AI SDK 5, 6 and 7 that have no page.
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { batonChatTransport, BatonError, resumable } from "../dist/esm/ai-sdk.js";
import { cut, serving, sse, textOf } from "./server.mjs";

const SDKS = { 5: await import("ai-5"), 6: await import("ai-6"), 7: await import("ai") };
const RUN = "run_019a5e2c00007000800000000000000a";
const API = "/v1/ai-sdk/chat";

const CHUNKS = [
  { type: "start", messageId: "msg_1", messageMetadata: { streamId: "1" } },
  { type: "start-step" },
  { type: "text-start", id: "text-1" },
  ...["Ein ", "wörd ", "💡 ", "more"].map((delta) => ({ type: "text-delta", id: "text-1", delta })),
  { type: "text-end", id: "text-1" },
  { type: "finish-step" },
  { type: "finish", finishReason: "stop", messageMetadata: { status: "completed" } },
];
const TEXT = "Ein wörd 💡 more";
const frame = (chunk) => `data: ${JSON.stringify(chunk)}\n\n`;
const bytesOf = (chunks) => Buffer.from(`${chunks.map(frame).join("")}data: [DONE]\n\n`);
const OPEN = { ...sse, "x-workflow-run-id": RUN };

/** A door that answers each request by `script(request, response, n)`, and remembers the requests. */
async function door(script, work, options = {}) {
  const requests = [];
  const handle = async (request, response) => {
    const body = await textOf(request);
    const url = new URL(request.url, "http://x");
    requests.push({ method: request.method, path: url.pathname + url.search, headers: request.headers, body });
    await script({ method: request.method, path: url.pathname, query: url.searchParams }, response, requests.length - 1);
  };
  await serving(handle, (url) => work(batonChatTransport({ url, patienceMilliseconds: 5000, ...options }), requests, url));
}

/** Send the chunks that a request wants, up to `end`; then break the connection, unless that is the end. */
function send(query, response, { chunks = CHUNKS, end } = {}) {
  const bytes = bytesOf(chunks.slice(Number(query.get("startIndex") ?? 0)));
  response.writeHead(200, OPEN);
  end === undefined ? response.end(bytes) : cut(response, bytes.subarray(0, end));
}

function refuse(response, status, code, headers = {}) {
  response.writeHead(status, { "content-type": "application/problem+json", ...headers });
  response.end(JSON.stringify({ type: "x", code, detail: `A sentence about ${code}.` }));
}

const USER = { id: "u", role: "user", parts: [{ type: "text", text: "Hello" }] };
const sent = (more) => ({ chatId: "42", trigger: "submit-message", messages: [USER], ...more });

async function read(stream) {
  const found = [];
  for await (const chunk of stream) found.push(chunk);
  return found;
}

/** A chat without a page. */
function chatOf(version, transport, options = {}) {
  const sdk = SDKS[version];
  class State {
    status = "ready";
    error = undefined;
    messages = options.messages ?? [];
    pushMessage = (message) => (this.messages = [...this.messages, message]);
    popMessage = () => (this.messages = this.messages.slice(0, -1));
    replaceMessage = (at, message) => (this.messages = this.messages.map((one, i) => (i === at ? structuredClone(message) : one)));
    snapshot = (value) => structuredClone(value);
  }
  return new (class extends sdk.AbstractChat {})({ id: "42", onError: () => {}, ...options, transport, state: new State() });
}

const textOfChat = ({ messages }) => messages.map(({ parts }) => parts.map((part) => part.text ?? "").join(""));

for (const version of Object.keys(SDKS)) {
  test(`a chat of AI SDK ${version} never sees that connections break, wherever they do`, async () => {
    const whole = bytesOf(CHUNKS).length;
    let end = 0;
    const script = ({ query }, response) => send(query, response, { end: (end += 37) < whole ? end : undefined });
    await door(script, async (transport, requests) => {
      const statuses = new Set();
      const chat = chatOf(version, transport);
      const watch = setInterval(() => statuses.add(chat.status), 1);
      await chat.sendMessage({ text: "Hello" });
      clearInterval(watch);
      assert.deepEqual(textOfChat(chat), ["Hello", TEXT]);
      assert.equal(chat.error, undefined);
      assert.equal(chat.messages[1].id, "msg_1");
      assert.deepEqual(chat.messages[1].metadata, { streamId: "1", status: "completed" });
      assert(!statuses.has("error"));
      const again = requests.slice(1);
      assert(again.length > 3 && again.every(({ method, path }) => method === "GET" && path.startsWith(`${API}/${RUN}/stream?startIndex=`)));
    });
  });

  test(`what goes wrong is a BatonError with a code in AI SDK ${version}`, async () => {
    const failed = [
      ...CHUNKS.slice(0, 5),
      { type: "text-end", id: "text-1" },
      { type: "message-metadata", messageMetadata: { status: "failed", error: { code: "tired", message: "The model (7B) is tired." } } },
      { type: "error", errorText: "The model (7B) is tired. (tired)" },
      { type: "finish", finishReason: "error", messageMetadata: { status: "failed" } },
    ];
    const script = ({ query }, response, n) =>
      n === 0 ? refuse(response, 409, "answer_running") : send(query, response, { chunks: failed });
    await door(script, async (transport) => {
      const chat = chatOf(version, transport);
      await chat.sendMessage({ text: "Hello" });
      assert(chat.error instanceof BatonError);
      assert.deepEqual([chat.status, chat.error.code, chat.error.status], ["error", "answer_running", 409]);
      await chat.sendMessage({ text: "Hello" });
      assert(chat.error instanceof BatonError);
      assert.deepEqual([chat.error.code, chat.error.message], ["tired", "The model (7B) is tired."]);
      // Everything before the error is on the page.
      assert.equal(textOfChat(chat).at(-1), "Ein wörd ");
      assert.equal(chat.messages.at(-1).metadata.status, "failed");
    });
  });

  for (const [name, answer] of Object.entries({
    "is running": (response) => response.writeHead(204).end(),
    exists: (response) => response.writeHead(200, sse).end('data: {"type":"finish","finishReason":"other"}\n\ndata: [DONE]\n\n'),
    "is found": (response) => refuse(response, 404, "stream_not_found"),
    "is kept": (response) => refuse(response, 410, "stream_expired"),
  })) {
    test(`a resume is harmless in AI SDK ${version} if no answer ${name}`, async () => {
      await door((_, response) => answer(response), async (transport, requests) => {
        let finished = 0;
        const chat = chatOf(version, transport, { messages: [USER], onFinish: () => finished++ });
        await chat.resumeStream();
        assert.deepEqual([chat.status, chat.error, chat.messages], ["ready", undefined, [USER]]);
        assert.equal(requests.length, 1);
        assert.equal(requests[0].path, `${API}/42/stream?startIndex=0`);
      });
    });
  }

  test(`a chat of AI SDK ${version} stops the generator, and a resumed answer is stopped, too`, async () => {
    const stopped = stops();
    const script = ({ method, path }, response) => {
      if (stopped.takes(path, response)) return;
      response.writeHead(200, OPEN).write(CHUNKS.slice(0, 5).map(frame).join(""));
      assert(method === "POST" || path.endsWith("/stream"));
    };
    await door(script, async (transport) => {
      const chat = chatOf(version, transport);
      for (const begin of [() => chat.sendMessage({ text: "Hello" }), () => chat.resumeStream()]) {
        const over = begin();
        while (!textOfChat(chat).at(-1)?.includes("wörd")) await new Promise((resolve) => setTimeout(resolve, 2));
        await chat.stop();
        await over;
        assert.equal(await stopped.next(), RUN);
        assert.deepEqual([chat.status, chat.error, textOfChat(chat).at(-1)], ["ready", undefined, "Ein wörd "]);
        chat.messages = chat.messages.slice(0, 1);
      }
    });
  });
}

/** Collects what is stopped. */
function stops() {
  const found = [];
  let arrived = () => {};
  return {
    found,
    takes(path, response) {
      const [, id] = /\/([^/]+)\/stop$/.exec(path) ?? [];
      if (id) found.push(id), response.writeHead(202).end("{}"), arrived();
      return Boolean(id);
    },
    async next() {
      while (!found.length) await new Promise((resolve) => (arrived = resolve));
      return found.shift();
    },
  };
}

test("a request whose response is lost is repeated with its key and its body", async () => {
  const script = ({ query }, response, n) => {
    if (n === 0) return response.socket.destroy();
    if (n === 1) return refuse(response, 503, "unavailable", { "retry-after": "0" });
    send(query, response);
  };
  const options = { model: "tap", body: async () => ({ temperature: 1 }), headers: () => ({ "x-csrf": "1" }) };
  await door(script, async (transport, requests) => {
    const stream = await transport.sendMessages(sent({ headers: new Headers({ "x-more": "2" }), body: { top: 3 } }));
    assert.deepEqual(await read(stream), CHUNKS);
    assert.equal(requests.length, 3);
    assert.equal(new Set(requests.map(({ headers, body }) => headers["idempotency-key"] + body)).size, 1);
    assert.deepEqual([requests[2].headers["x-csrf"], requests[2].headers["x-more"]], ["1", "2"]);
    assert.deepEqual(JSON.parse(requests[2].body), {
      ...{ model: "tap", temperature: 1, top: 3 },
      ...{ id: "42", messages: [USER], trigger: "submit-message" },
    });
  }, options);
});

test("only the last message is sent, on request", async () => {
  const script = ({ query }, response) => send(query, response);
  await door(script, async (transport, requests) => {
    await read(await transport.sendMessages(sent({ messages: [{ id: "a" }, USER] })));
    await read(await transport.sendMessages(sent({ trigger: "regenerate-message", messageId: "a" })));
    assert.deepEqual(requests.map(({ body }) => JSON.parse(body)), [
      { id: "42", message: USER, previousMessageId: "a" },
      { id: "42", trigger: "regenerate-message", messageId: "a" },
    ]);
  }, { lastMessageOnly: true });
});

test("a token is asked for again when a pod refuses it, also in the middle of an answer", async () => {
  let valid = "t1";
  const script = ({ query }, response, n) => {
    if (response.req.headers.authorization !== `Bearer ${valid}`) return refuse(response, 401, "unauthenticated");
    if (n === 1) valid = "t3";
    send(query, response, { end: n === 1 ? 200 : undefined });
  };
  let count = 0;
  await door(script, async (transport) => {
    assert.deepEqual(await read(await transport.sendMessages(sent())), CHUNKS);
    assert.equal(valid, "t3");
  }, { token: () => `t${count++}` });
});

test("a resumed answer continues at its run, with the message that it continues", async () => {
  const script = ({ query }, response, n) => send(query, response, { end: n < 3 ? 160 : undefined });
  await door(script, async (transport, requests) => {
    assert.deepEqual(await read(await transport.reconnectToStream({ chatId: "a/b" })), CHUNKS);
    assert.equal(requests[0].path, `${API}/a%2Fb/stream?startIndex=0`);
    const again = requests.slice(1).map(({ path }) => path.replace(/\d+$/, "N"));
    assert.deepEqual(new Set(again), new Set([`${API}/${RUN}/stream?replay=true&startIndex=N`]));
  });
});

test("an answer that the page was loaded with whole is not asked for again", async () => {
  const messages = [USER, { id: "msg_1", role: "assistant", metadata: { status: "completed" }, parts: [] }];
  const script = ({ method, query }, response) => (method === "GET" ? response.writeHead(204).end() : send(query, response));
  await door(script, async (transport, requests) => {
    assert.equal(await transport.reconnectToStream({ chatId: "42" }), null);
    await read(await transport.sendMessages(sent()));
    assert.equal(await transport.reconnectToStream({ chatId: "42" }), null);
    const gets = requests.filter(({ method }) => method === "GET").map(({ path }) => path);
    assert.deepEqual(gets, [`${API}/42/stream`, `${API}/42/stream?startIndex=0`]);
  }, { messages });
});

test("an answer whose end was sent is not asked for again", async () => {
  const end = bytesOf(CHUNKS).length - "data: [DONE]\n\n".length;
  await door(({ query }, response) => send(query, response, { end }), async (transport, requests) => {
    assert.deepEqual(await read(await transport.sendMessages(sent())), CHUNKS);
    assert.equal(requests.length, 1);
  });
});

test("a refusal in the middle of an answer ends it with its code", async () => {
  const script = ({ query }, response, n) => (n ? refuse(response, 410, "stream_expired") : send(query, response, { end: 200 }));
  await door(script, async (transport) => {
    await assert.rejects(read(await transport.sendMessages(sent())), { name: "BatonError", code: "stream_expired" });
  });
});

test("an error discards none of the chunks that came before it, though nobody has read them yet", async () => {
  const failed = [...CHUNKS.slice(0, 5), { type: "error", errorText: "It is tired. (tired)" }];
  await door(({ query }, response) => send(query, response, { chunks: failed }), async (transport) => {
    const stream = await transport.sendMessages(sent());
    await new Promise((resolve) => setTimeout(resolve, 50));
    const found = [];
    const reading = (async () => {
      for await (const chunk of stream) found.push(chunk);
    })();
    await assert.rejects(reading, { name: "BatonError", code: "tired" });
    assert.deepEqual(found, CHUNKS.slice(0, 5));
  });
});

test("a response that is not a pod's is refused", async () => {
  await door((_, response) => response.end("<html>"), async (transport) => {
    await assert.rejects(transport.sendMessages(sent()), { name: "BatonError", code: "unexpected_response" });
  });
});

test("it gives up when no pod answers", async () => {
  await door((_, response) => response.socket.destroy(), async (transport) => {
    await assert.rejects(transport.sendMessages(sent()), { name: "BatonError", code: "unreachable" });
  }, { patienceMilliseconds: 300 });
});

test("a chat that is stopped before a pod has answered is stopped then", async () => {
  const [stopped, abort] = [stops(), new AbortController()];
  let answer;
  const script = ({ path }, response) => {
    if (stopped.takes(path, response)) return;
    answer = () => response.writeHead(200, OPEN).write(frame(CHUNKS[0]));
    abort.abort();
  };
  await door(script, async (transport) => {
    await assert.rejects(transport.sendMessages(sent({ abortSignal: abort.signal })), { name: "AbortError" });
    assert.deepEqual(stopped.found, []);
    answer();
    assert.equal(await stopped.next(), RUN);
  });
});

test("leaving an answer, or asking for it again, stops nothing", async () => {
  const stopped = stops();
  const script = ({ path }, response) => {
    if (!stopped.takes(path, response)) response.writeHead(200, OPEN).write(frame(CHUNKS[0]));
  };
  await door(script, async (transport, requests) => {
    const abort = new AbortController();
    const one = (await transport.sendMessages(sent({ abortSignal: abort.signal }))).getReader();
    await one.read();
    await one.cancel();
    abort.abort();
    const [first, second] = [new AbortController(), new AbortController()];
    const resumed = await transport.reconnectToStream({ chatId: "42", abortSignal: first.signal });
    first.abort(); // as the SDK does right before it asks again
    const again = await transport.reconnectToStream({ chatId: "42", abortSignal: second.signal });
    await assert.rejects(read(resumed), { name: "AbortError" });
    assert.equal((await again.getReader().read()).value.type, "start");
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.deepEqual(stopped.found, []);
    assert.equal(requests.length, 3);
  });
});

test("on request, a stop of the chat leaves the generator alone, and stop() does not", async () => {
  const [stopped, abort] = [stops(), new AbortController()];
  const script = ({ path }, response) => {
    if (!stopped.takes(path, response)) response.writeHead(200, OPEN).write(frame(CHUNKS[0]));
  };
  await door(script, async (transport) => {
    const stream = await transport.sendMessages(sent({ abortSignal: abort.signal }));
    abort.abort();
    await assert.rejects(read(stream), { name: "AbortError" });
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.deepEqual(stopped.found, []);
    await transport.stop("4 2");
    assert.deepEqual(stopped.found, ["4%202"]);
  }, { stopOnAbort: false });
});

test("a stop that is refused is reported", async () => {
  const [abort, failed] = [new AbortController(), new EventTarget()];
  const script = ({ path }, response) =>
    path.endsWith("/stop") ? refuse(response, 403, "forbidden") : response.writeHead(200, OPEN).write(frame(CHUNKS[0]));
  const onStopFailed = (error) => failed.dispatchEvent(Object.assign(new Event("stop"), { code: error.code }));
  await door(script, async (transport) => {
    await transport.sendMessages(sent({ abortSignal: abort.signal }));
    const reported = once(failed, "stop");
    abort.abort();
    assert.equal((await reported)[0].code, "forbidden");
  }, { onStopFailed });
});

/** Run `work` with a document that can be hidden. */
async function inPage(work) {
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  const become = (state) => {
    document.visibilityState = state;
    document.dispatchEvent(new Event("visibilitychange"));
  };
  globalThis.document = document;
  try {
    await work(become);
  } finally {
    delete globalThis.document;
  }
}

test("a page that wakes up replaces a silent connection, and misses nothing", { timeout: 30_000 }, async () => {
  await inPage(async (become) => {
    const now = Date.now;
    const script = ({ query }, response, n) => {
      if (n) return send(query, response);
      response.writeHead(200, OPEN).write(CHUNKS.slice(0, 4).map(frame).join(""));
    };
    await door(script, async (transport, requests) => {
      const reader = (await transport.sendMessages(sent())).getReader();
      const found = [];
      while (found.length < 4) found.push((await reader.read()).value);
      const next = reader.read();
      await new Promise((resolve) => setTimeout(resolve, 10)); // it waits for more
      become("hidden");
      become("visible");
      await new Promise((resolve) => setTimeout(resolve, 10));
      assert.equal(requests.length, 1); // it was heard a moment ago
      become("hidden");
      Date.now = () => now() + 60_000; // the page was frozen
      become("visible");
      found.push((await next).value);
      for (let step; !(step = await reader.read()).done; ) found.push(step.value);
      assert.deepEqual(found, CHUNKS);
      assert.equal(requests[1].path, `${API}/${RUN}/stream?startIndex=4`);
    }).finally(() => (Date.now = now));
  });
});

test("a hidden page does not lose patience, and tries at once when it is shown", { timeout: 30_000 }, async () => {
  await inPage(async (become) => {
    let failures = 0;
    let isUp = false;
    const script = ({ query }, response, n) => {
      if (isUp) return send(query, response);
      if (n === 0) return send(query, response, { end: 200 });
      failures++;
      response.socket.destroy();
    };
    await door(script, async (transport) => {
      const reading = read(await transport.sendMessages(sent()));
      become("hidden");
      // More than it takes a visible page to give up.
      while (failures < 2) await new Promise((resolve) => setTimeout(resolve, 10));
      await new Promise((resolve) => setTimeout(resolve, 1000));
      isUp = true;
      become("visible");
      assert.deepEqual(await reading, CHUNKS);
    }, { patienceMilliseconds: 300 });
  });
});

test("incomplete calls are left out of saved messages, but not of an answer that has ended", () => {
  const parts = [{ type: "text", text: "a" }, { type: "tool-x", state: "input-streaming" }];
  const kept = [...parts.slice(0, 1), { type: "tool-x", state: "input-available" }];
  const saved = [
    { id: "1", role: "assistant", metadata: { status: "cancelled" }, parts },
    { id: "2", role: "assistant", parts: [...parts, { type: "tool-x", state: "input-available", providerExecuted: true }, kept[1]] },
  ];
  assert.deepEqual(resumable(saved), [saved[0], { ...saved[1], parts: kept }]);
});
