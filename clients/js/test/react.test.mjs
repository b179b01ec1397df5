// The hook in React 18 and 19, with a page but without a browser.
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Window } from "happy-dom";
import { react } from "./react-bundle.mjs";
import { ID, block, serving, sse, textOf } from "./server.mjs";

const window = new Window({ url: "http://localhost/" });
Object.assign(globalThis, { window, document: window.document });
let frames = 0;
globalThis.requestAnimationFrame = (draw) => setTimeout(() => (frames++, draw()), 16);

const DONE = { type: "done", status: "completed", finish_reason: "stop" };
const text = (delta) => ({ type: "text", delta });

/** A pod with one stream, whose events a test sends. It takes snapshots as pods do, of text only. */
class Pod {
  events = [];
  requests = [];
  connected = new Set();
  handle = async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://x");
    this.requests.push({ path: pathname, snapshot: searchParams.has("snapshot"), cursor: request.headers["last-event-id"], token: request.headers.authorization, body: await textOf(request) });
    if (this.status) return response.writeHead(this.status).end(JSON.stringify({ code: "stream_not_found", detail: "Gone." }));
    if (request.method === "POST") return response.end(JSON.stringify({ status: "running", number: 7 }));
    response.writeHead(200, sse);
    response.flushHeaders();
    const cursor = Number(request.headers["last-event-id"] ?? 0);
    const known = this.events.filter(({ type }) => type !== "done").length;
    const summed = !cursor && searchParams.has("snapshot") && known > 0;
    if (summed) response.write(block(known, this.#snapshot()));
    this.#write(response, summed ? known : cursor);
    this.connected.add(response);
    response.on("close", () => this.connected.delete(response));
  };

  send(...events) {
    const before = this.events.length;
    this.events.push(...events);
    for (const response of this.connected) this.#write(response, before);
  }

  cut() {
    for (const response of this.connected) response.socket.destroy();
  }

  get followers() {
    return this.requests.filter(({ path }) => path.endsWith("/events"));
  }

  #snapshot() {
    return { type: "snapshot", text: this.events.filter(({ type }) => type === "text").map(({ delta }) => delta).join("") };
  }

  #write(response, cursor) {
    response.write(`retry: 1\n\n${this.events.slice(cursor).map((event, index) => block(cursor + index + 1, event)).join("")}`);
  }
}

for (const version of [18, 19]) {
  const { React, useBaton, client } = await react(version);
  const { createRoot, hydrateRoot } = client();

  /** Render a component that only calls the hook. */
  function page(stream, options, { strict = false, hydrated = null } = {}) {
    const watchers = new Set();
    const shown = { all: [], errors: [] };
    const Probe = ({ stream }) => {
      const answer = useBaton(stream, options);
      React.useEffect(() => {
        shown.all.push((shown.now = answer));
        for (const watch of [...watchers]) watch();
      }, [answer]);
      return answer.text;
    };
    const element = (stream) => React.createElement(strict ? React.StrictMode : React.Fragment, null, React.createElement(Probe, { stream }));
    const container = document.createElement("div");
    let root;
    if (hydrated === null) (root = createRoot(container)).render(element(stream));
    else {
      container.innerHTML = hydrated;
      root = hydrateRoot(container, element(stream), { onRecoverableError: (error) => shown.errors.push(error) });
    }
    const until = (holds) =>
      new Promise((resolve) => {
        const watch = () => shown.now && holds(shown.now) && (watchers.delete(watch), resolve(shown.now));
        watchers.add(watch);
        watch();
      });
    return { shown, until, container, leave: () => root.unmount(), show: (stream) => root.render(element(stream)) };
  }

  const trying = (name, work) =>
    test(`React ${version}: ${name}`, async () => {
      const pod = new Pod();
      await serving(pod.handle, (url) => work(pod, { url, id: ID }, url));
    });

  trying("strict mode opens one connection, and leaving closes it", async (pod, stream) => {
    let tokens = 0;
    const { until, leave, container } = page({ ...stream }, { token: async () => `t${++tokens}` }, { strict: true });
    await until(({ connected }) => connected);
    pod.send(text("Hel"), text("lo"));
    const { status, stop } = await until((answer) => answer.text === "Hello");
    assert.equal(status, "streaming");
    assert.equal(container.textContent, "Hello");
    const [response] = pod.connected;
    leave();
    await once(response, "close");
    assert.deepEqual(pod.requests.map(({ path, token }) => [path, token]), [[`/v1/streams/${ID}/events`, "Bearer t1"]]);
    assert.equal(tokens, 1);
    await stop(); // a function that was handed on works later, too
  });

  trying("it renders at most once for each frame", async (pod, stream) => {
    const { shown, until, leave } = page(stream);
    await until(({ connected }) => connected);
    const [rendered, drawn] = [shown.all.length, frames];
    for (let index = 0; index < 50; index++) {
      pod.send(...Array.from({ length: 100 }, () => text("x")));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    pod.send(DONE);
    const { text: whole, status, finishReason, connected } = await until(({ status }) => status === "completed");
    assert.deepEqual([whole.length, status, finishReason, connected], [5000, "completed", "stop", false]);
    const [renders, passed] = [shown.all.length - rendered, frames - drawn];
    assert.ok(renders <= passed + 1, `${renders} renders in ${passed} frames`);
    assert.ok(renders < 500, `${renders} renders of 5,001 events`);
    leave();
  });

  trying("a page that is loaded again has the answer so far, and what follows", async (pod, stream) => {
    pod.send(text("One "), text("two "));
    const first = page(stream);
    await first.until((answer) => answer.text === "One two ");
    first.leave();
    pod.send(text("three"));
    const second = page(`${stream.url}/v1/streams/${stream.id}/events`);
    await second.until((answer) => answer.text === "One two three");
    pod.send(text("."), DONE);
    assert.equal((await second.until(({ status }) => status === "completed")).text, "One two three.");
    second.leave();
    assert.deepEqual(pod.followers.map(({ snapshot, cursor }) => [snapshot, cursor]), [[true, undefined], [true, undefined]]);
  });

  trying("a cut connection is continued, and shown", async (pod, stream) => {
    const { shown, until, leave } = page(stream);
    await until(({ connected }) => connected);
    pod.send(text("One "));
    await until((answer) => answer.text === "One ");
    pod.cut();
    await until(({ connected }) => !connected);
    await until(({ connected }) => connected);
    pod.send(text("two"), DONE);
    assert.equal((await until(({ status }) => status === "completed")).text, "One two");
    assert.deepEqual(pod.followers.map(({ cursor }) => cursor), [undefined, "1"]);
    assert.ok(shown.all.every(({ status }) => status !== "lost"));
    leave();
  });

  trying("it stops the generator, sends inputs, and uses the token of this moment", async (pod, stream) => {
    const options = { token: "old", headers: { "x-mine": "1" } };
    const { until, leave } = page(stream, options);
    const { stop, send } = await until(({ connected }) => connected);
    pod.send({ type: "waiting", for: { type: "approval" }, until: null });
    const { waiting, send: same } = await until(({ status }) => status === "waiting");
    assert.deepEqual(waiting, { for: { type: "approval" }, until: null });
    assert.equal(same, send);
    options.token = "new";
    assert.equal(await send({ approved: true }), 7);
    pod.send({ type: "resumed", run: 2, reason: "input" });
    assert.equal((await until(({ status }) => status === "streaming")).waiting, null);
    assert.equal((await stop()).status, "running");
    pod.send({ ...DONE, status: "cancelled", finish_reason: "cancelled" });
    await until(({ status }) => status === "cancelled");
    leave();
    const posts = pod.requests.slice(1).map(({ path, token, body }) => [path.split("/").at(-1), token, body]);
    assert.deepEqual(posts, [["inputs", "Bearer new", '{"data":{"approved":true}}'], ["cancel", "Bearer new", "{}"]]);
  });

  trying("an end with an error, and a stream that cannot be followed, are not the same", async (pod, stream) => {
    const failing = page(stream);
    pod.send(text("half"), { ...DONE, status: "failed", finish_reason: "error", error: { code: "provider_error", message: "It failed." } });
    const failed = await failing.until(({ error }) => error !== null);
    assert.deepEqual([failed.status, failed.text, failed.error.code], ["failed", "half", "provider_error"]);
    pod.status = 404;
    const lost = page(stream);
    const { status, error } = await lost.until(({ error }) => error !== null);
    assert.deepEqual([status, error.name, error.code, error.message], ["lost", "BatonError", "stream_not_found", "Gone."]);
    assert.equal(lost.shown.now.connected, false);
    const wrong = page("not\\an:address//");
    assert.equal((await wrong.until(({ error }) => error !== null)).status, "lost");
    for (const { leave } of [failing, lost, wrong]) leave();
  });

  trying("it follows another stream when it is given one, and none without", async (pod, stream, url) => {
    const { until, show, leave } = page(null);
    const { status, stop, send } = await until(({ status }) => status === "idle");
    assert.equal(status, "idle");
    await assert.rejects(stop(), { code: "invalid_url" });
    await assert.rejects(send(1), { code: "invalid_url" });
    show(stream);
    await until(({ connected }) => connected);
    pod.send(text("first"));
    await until((answer) => answer.text === "first");
    const [response] = pod.connected;
    show({ url, id: "another" });
    await once(response, "close");
    await until(({ connected, status }) => connected || status === "streaming");
    show(null);
    await until(({ status }) => status === "idle");
    leave();
    assert.deepEqual(pod.followers.map(({ path }) => path.split("/")[3]), [ID, "another"]);
  });

  trying("it gets each event, and an error in the page's own function does not end the answer", async (pod, stream) => {
    const thrown = [];
    globalThis.reportError = (error) => thrown.push(error.message);
    const events = [];
    const onEvent = (event) => {
      events.push(event.type);
      if (event.type === "custom") throw new Error("the page's");
    };
    const { until, leave } = page(stream, { onEvent });
    await until(({ connected }) => connected);
    pod.send(text("a"), { type: "custom", name: "x" }, text("b"), DONE);
    assert.equal((await until(({ status }) => status === "completed")).text, "ab");
    leave();
    assert.deepEqual([events, thrown], [["text", "custom", "text", "done"], ["the page's"]]);
  });

  trying("a page from the server is continued without a difference", async (pod, stream) => {
    pod.send(text("Hello"), DONE);
    const { shown, until, container, leave } = page(stream, {}, { hydrated: "" });
    await until(({ status }) => status === "completed");
    assert.deepEqual(shown.errors, []);
    assert.equal(shown.all[0].status, "connecting");
    assert.equal(container.textContent, "Hello");
    leave();
  });
}
