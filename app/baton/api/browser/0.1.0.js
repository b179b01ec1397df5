// baton-stream 0.1.0 (MIT). Built from clients/js by `make js`: change it there.

// src/errors.ts
var BatonError = class extends Error {
  name = "BatonError";
  code;
  status;
  retryable;
  retryAfterSeconds;
  constructor(code, message, details = {}) {
    super(message, details.cause === void 0 ? void 0 : { cause: details.cause });
    this.code = code;
    this.status = details.status;
    this.retryable = details.retryable ?? false;
    this.retryAfterSeconds = details.retryAfterSeconds;
  }
};
var PASSING = /* @__PURE__ */ new Set([408, 425, 429]);
var isTemporary = (status) => status >= 500 ? status !== 501 && status !== 505 : PASSING.has(status);
async function refusal(response) {
  const problem = await readProblem(response);
  const sentence = problem.detail ?? problem.title ?? `The response has the status ${response.status}.`;
  return new BatonError(problem.code ?? "unexpected_response", sentence, {
    status: response.status,
    retryable: isTemporary(response.status),
    retryAfterSeconds: retryAfter(response.headers.get("retry-after"))
  });
}
async function readProblem(response) {
  try {
    const found = JSON.parse(await response.text());
    return typeof found === "object" && found !== null ? found : {};
  } catch {
    return {};
  }
}
function retryAfter(value) {
  if (!value) return void 0;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1e3;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : void 0;
}

// src/addresses.ts
var FOLLOWING = ["view", "snapshot", "batch_window_ms", "last_event_id", "lastEventId"];
function absolute(url) {
  const base = globalThis.location?.href;
  try {
    return new URL(url, base);
  } catch (error) {
    throw new BatonError("invalid_url", `The address ${String(url)} is not absolute.`, { cause: error });
  }
}
function routeAt(url, path) {
  const base = absolute(url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return new URL(path, base);
}
function eventsUrlOf(stream) {
  if (typeof stream === "string" || !("id" in stream)) return absolute(stream);
  if (!stream.id) throw new BatonError("invalid_url", "The id of the stream is empty.");
  return routeAt(stream.url, `v1/streams/${encodeURIComponent(stream.id)}/events`);
}
function streamUrl(eventsUrl) {
  if (!eventsUrl.pathname.endsWith("/events")) return null;
  const url = new URL(eventsUrl);
  url.pathname = url.pathname.slice(0, -"/events".length);
  for (const name of FOLLOWING) url.searchParams.delete(name);
  return url;
}
function actionUrl(stream, action) {
  const url = streamUrl(eventsUrlOf(stream));
  if (url === null) throw new BatonError("invalid_url", "Give the address of the stream's events: it ends with /events.");
  url.pathname += `/${action}`;
  return url.href;
}

// src/backoff.ts
var FIRST_MILLISECONDS = 200;
var LONGEST_MILLISECONDS = 5e3;
var LONGEST_ASKED_MILLISECONDS = 6e5;
var Backoff = class {
  #patienceMilliseconds;
  #failures = 0;
  #since = null;
  // of the first failure after something was heard
  constructor(patienceMilliseconds) {
    this.#patienceMilliseconds = patienceMilliseconds;
  }
  /** Start again with the shortest pause, after a success. */
  reset() {
    this.#failures = 0;
    this.#since = null;
  }
  /** Have patience again, but keep the length of the pauses: there was an answer, but no success. */
  heard() {
    this.#since = null;
  }
  /** Count a failure; return the milliseconds to wait after it, or null when patience is over. */
  next(leastMilliseconds = 0) {
    this.#since ??= Date.now();
    if (Date.now() - this.#since > this.#patienceMilliseconds) return null;
    const longest = Math.min(LONGEST_MILLISECONDS, FIRST_MILLISECONDS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 30);
    return Math.max(Math.min(leastMilliseconds, LONGEST_ASKED_MILLISECONDS), longest * (0.5 + Math.random() / 2));
  }
};
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal && reasonOf(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
var reasonOf = (signal) => signal.reason ?? Object.assign(new Error("The request was aborted."), { name: "AbortError" });

// src/event-stream.ts
var EventStreamParser = class {
  /** The reconnection time that the stream set last. */
  retryMilliseconds;
  #rest = "";
  #atStart = true;
  #afterCr = false;
  // the last chunk ended with a carriage return: a line feed that follows belongs to it
  #data = [];
  #type = "";
  #id = "";
  push(chunk) {
    const found = [];
    let text = this.#rest + chunk;
    if (this.#atStart && text) {
      if (text.startsWith("\uFEFF")) text = text.slice(1);
      this.#atStart = false;
    }
    let start = 0;
    if (this.#afterCr && text) {
      if (text[0] === "\n") start = 1;
      this.#afterCr = false;
    }
    for (let end = lineEnd(text, start); end !== -1; end = lineEnd(text, start)) {
      this.#line(text.slice(start, end), found);
      const isCr = text[end] === "\r";
      start = isCr && text[end + 1] === "\n" ? end + 2 : end + 1;
      this.#afterCr = isCr && start === text.length && start === end + 1;
    }
    this.#rest = text.slice(start);
    return found;
  }
  #line(line, found) {
    if (line === "") return this.#dispatch(found);
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retryMilliseconds = Number(value);
  }
  #dispatch(found) {
    const [data, type] = [this.#data, this.#type || "message"];
    this.#data = [];
    this.#type = "";
    if (data.length) found.push({ id: this.#id, type, data: data.join("\n") });
  }
};
function lineEnd(text, start) {
  const lf = text.indexOf("\n", start);
  const cr = text.indexOf("\r", start);
  if (lf === -1 || cr === -1) return Math.max(lf, cr);
  return Math.min(lf, cr);
}

// src/fetch.ts
var fetchOf = (given) => given ?? ((url, init) => globalThis.fetch(url, init));
var TokenHolder = class {
  #given;
  #token;
  #known = false;
  #refused = false;
  constructor(given) {
    this.#given = given;
  }
  /** Return the headers for the next request. */
  async headers() {
    if (!this.#known) {
      this.#token = typeof this.#given === "function" ? await this.#given() : this.#given ?? void 0;
      this.#known = true;
    }
    return this.#token ? { authorization: `Bearer ${this.#token}` } : {};
  }
  /** Note that a pod accepted the token. */
  accepted() {
    this.#refused = false;
  }
  /** Note a 401. Return whether another token is worth a try: not for a second refusal in a row. */
  refused() {
    const again = typeof this.#given === "function" && !this.#refused;
    this.#refused = true;
    this.#known = false;
    return again;
  }
};
var Deadline = class {
  #controller = new AbortController();
  #outer;
  #milliseconds;
  #stop = () => this.#controller.abort(this.#outer?.reason);
  #timer;
  constructor(outer, milliseconds) {
    this.#outer = outer;
    this.#milliseconds = milliseconds;
    if (outer?.aborted) this.#stop();
    else outer?.addEventListener("abort", this.#stop);
    this.extend();
  }
  get signal() {
    return this.#controller.signal;
  }
  /** Start the silence again: something arrived. */
  extend() {
    clearTimeout(this.#timer);
    const silent = () => this.#controller.abort(new BatonError("unreachable", "The connection was silent for too long.", { retryable: true }));
    this.#timer = setTimeout(silent, this.#milliseconds);
  }
  /** End the request, if it still runs. */
  end() {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#stop);
    this.#controller.abort();
  }
  /** Wait for `work`, but not beyond the abort: some implementations of `fetch` do not watch their signal. */
  race(work) {
    return new Promise((resolve, reject) => {
      const stop = () => reject(reasonOf(this.signal));
      if (this.signal.aborted) stop();
      this.signal.addEventListener("abort", stop, { once: true });
      work.then(resolve, reject).finally(() => this.signal.removeEventListener("abort", stop));
    });
  }
};
function lost(error) {
  if (error instanceof BatonError) return error;
  return new BatonError("unreachable", "The connection was lost.", { retryable: true, cause: error });
}

// src/polling.ts
var ENDED = /* @__PURE__ */ new Set(["completed", "failed", "cancelled"]);
function stateUrl(eventsUrl, waitSeconds) {
  const url = streamUrl(eventsUrl);
  url?.searchParams.set("wait", String(waitSeconds));
  return url;
}
var AnswerProgress = class {
  #text = "";
  #reasoning = "";
  #calls = [];
  #results = 0;
  #approvals = 0;
  #waits = null;
  // since when
  #whole;
  /** `whole`: begin with a snapshot, because the caller asked for one, or has events that cannot be known here. */
  constructor(whole) {
    this.#whole = whole;
  }
  /** Return the events since the last call. */
  take(stream) {
    const wait = this.#wait(stream);
    const events = wait.filter(({ type }) => type === "resumed");
    if (this.#whole && stream.last_event_id) events.push(snapshot(stream));
    else if (!this.#whole) events.push(...this.#changes(stream));
    if (events.length || !this.#whole) this.#remember(stream);
    events.push(...wait.filter(({ type }) => type === "waiting"));
    if (ENDED.has(stream.status)) events.push(done(stream));
    return events;
  }
  /** Return the event of a wait that has begun or ended. */
  #wait({ status, waiting, run, interruption }) {
    const [before, since] = [this.#waits, waiting?.since ?? null];
    if (status === "queued") return [];
    this.#waits = since;
    if (waiting && since !== before) return [{ type: "waiting", for: waiting.for ?? null, until: waiting.until }];
    return before !== null && status === "running" ? [{ type: "resumed", run: run ?? 0, reason: interruption ?? "input" }] : [];
  }
  #changes(stream) {
    if (this.#startedAgain(stream)) {
      this.#remember({ status: stream.status });
      return [{ type: "reset", reason: stream.interruption ?? "worker_lost" }, ...this.#changes(stream)];
    }
    const reasoning = (stream.reasoning ?? "").slice(this.#reasoning.length);
    const text = (stream.text ?? "").slice(this.#text.length);
    return [
      ...reasoning ? [{ type: "reasoning", delta: reasoning }] : [],
      ...text ? [{ type: "text", delta: text }] : [],
      ...(stream.tool_calls ?? []).flatMap((call, index) => callChange(call, index, this.#calls[index])),
      ...(stream.tool_results ?? []).slice(this.#results).map((result) => ({ ...result, type: "tool_result" })),
      ...(stream.tool_approvals ?? []).slice(this.#approvals).map((asked) => ({ ...asked, type: "tool_approval" }))
    ];
  }
  #startedAgain({ text = "", reasoning = "", tool_calls: calls = [], tool_results: results = [] }) {
    const grew = text.startsWith(this.#text) && reasoning.startsWith(this.#reasoning) && results.length >= this.#results;
    return !grew || !this.#calls.every(({ id, arguments: before }, index) => {
      const now = calls[index];
      return now !== void 0 && now.id === id && now.arguments.startsWith(before);
    });
  }
  #remember(stream) {
    this.#whole = false;
    this.#text = stream.text ?? "";
    this.#reasoning = stream.reasoning ?? "";
    this.#calls = stream.tool_calls ?? [];
    this.#results = stream.tool_results?.length ?? 0;
    this.#approvals = stream.tool_approvals?.length ?? 0;
  }
};
function callChange(call, index, before) {
  const delta = call.arguments.slice(before?.arguments.length ?? 0);
  if (before) return delta ? [{ type: "tool_call", index, arguments_delta: delta }] : [];
  const side = call.run_by === void 0 ? {} : { run_by: call.run_by };
  return [{ type: "tool_call", index, id: call.id, name: call.name, arguments_delta: delta, ...side }];
}
function snapshot(stream) {
  const { text = "", reasoning, tool_calls, tool_results, tool_approvals, usage } = stream;
  const known = { reasoning, tool_calls, tool_results, tool_approvals, usage: usage ?? void 0 };
  const present = Object.entries(known).filter(([, value]) => value !== void 0);
  return { type: "snapshot", text, ...Object.fromEntries(present) };
}
function done(stream) {
  const { usage, usage_by_attempt: attempts, timings, error } = stream;
  return {
    type: "done",
    status: stream.status,
    finish_reason: stream.finish_reason ?? null,
    ...usage === void 0 ? {} : { usage },
    ...attempts ? { usage_by_attempt: attempts } : {},
    ...timings ? { timings } : {},
    ...error ? { error } : {}
  };
}

// src/follow.ts
var SILENCE_MILLISECONDS = 45e3;
var PATIENCE_MILLISECONDS = 6e4;
var POLL_SECONDS = 2;
var LEAST_POLL_MILLISECONDS = 500;
function follow(stream, options = {}) {
  return new Follower(eventsUrlOf(stream), options);
}
var NO_BODY = new BatonError("unexpected_response", "This fetch gives no body that can be read as it arrives.");
var Follower = class {
  lastEventId;
  #url;
  #options;
  #fetch;
  #token;
  #backoff;
  #events;
  #retryMilliseconds;
  #over = false;
  constructor(url, options) {
    this.#url = url;
    this.#options = options;
    this.lastEventId = options.lastEventId ?? 0;
    this.#fetch = fetchOf(options.fetch);
    this.#token = new TokenHolder(options.token);
    this.#backoff = new Backoff(options.patienceMilliseconds ?? PATIENCE_MILLISECONDS);
    this.#events = this.#run();
  }
  [Symbol.asyncIterator]() {
    return this;
  }
  next() {
    return this.#events.next();
  }
  return() {
    return this.#events.return();
  }
  async *#run() {
    let polls = !this.#options.fetch && !canStream();
    while (!this.#over) {
      let failure;
      try {
        yield* polls ? this.#poll() : this.#connection();
        failure = new BatonError("unreachable", "The pod closed the connection.", { retryable: true });
      } catch (error) {
        throwIfAborted(this.#options.signal);
        if (error === NO_BODY) {
          polls = true;
          continue;
        }
        failure = lost(error);
        if (failure.status === 401 && this.#token.refused()) continue;
        if (!failure.retryable) throw failure;
        this.#retryMilliseconds = void 0;
      }
      if (!this.#over) await this.#pause(failure);
    }
  }
  async #pause(error) {
    const least = this.#retryMilliseconds ?? (error.retryAfterSeconds ?? 0) * 1e3;
    const pauseMilliseconds = this.#backoff.next(least);
    if (pauseMilliseconds === null) {
      throw new BatonError("unreachable", "No pod has answered for too long.", { retryable: true, cause: error });
    }
    this.#options.onDisconnect?.({ error, lastEventId: this.lastEventId, pauseMilliseconds });
    await pause(pauseMilliseconds, this.#options.signal);
  }
  /** Follow the stream over one connection. */
  async *#connection() {
    const deadline = new Deadline(this.#options.signal, SILENCE_MILLISECONDS);
    try {
      const response = await this.#get(this.#eventsUrl(), "text/event-stream", deadline);
      if (response.status === 204) {
        this.#over = true;
        return;
      }
      requireType(response, "text/event-stream");
      const body = readable(response.body);
      this.#options.onConnect?.({ pod: response.headers.get("x-baton-pod") ?? "", lastEventId: this.lastEventId });
      for await (const message of this.#messages(body, deadline)) {
        yield this.#received(message);
        if (this.#over) return;
      }
    } finally {
      deadline.end();
    }
  }
  async *#messages(body, deadline) {
    const parser = new EventStreamParser();
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    try {
      for (; ; ) {
        const { done: done2, value } = await deadline.race(body.read());
        if (done2) return;
        deadline.extend();
        const found = parser.push(decoder.decode(value, { stream: true }));
        this.#retryMilliseconds = parser.retryMilliseconds ?? this.#retryMilliseconds;
        yield* found;
      }
    } finally {
      body.cancel().catch(() => {
      });
    }
  }
  #received({ id, data }) {
    const event = parsed(data);
    if (event.type === "error") throw new BatonError(event.error.code, event.error.message ?? "The stream cannot be followed.");
    if (!/^[0-9]+$/.test(id)) throw new BatonError("unexpected_response", "An event has no number: this is no stream of Baton's.");
    this.lastEventId = Number(id);
    this.#backoff.reset();
    this.#over = event.type === "done";
    return event;
  }
  /** Follow the stream by asking for its state. Each response ends, so any `fetch` can read it. */
  async *#poll() {
    const url = stateUrl(this.#url, POLL_SECONDS);
    if (url === null) throw NO_BODY_TO_POLL;
    const progress = new AnswerProgress(Boolean(this.#options.snapshot || this.lastEventId));
    while (!this.#over) {
      const due = Date.now() + LEAST_POLL_MILLISECONDS;
      const stream = await this.#state(url);
      this.#backoff.reset();
      for (const event of progress.take(stream)) {
        this.lastEventId = stream.last_event_id ?? this.lastEventId;
        this.#over = event.type === "done";
        yield event;
      }
      if (!this.#over) await pause(Math.max(0, due - Date.now()), this.#options.signal);
    }
  }
  async #state(url) {
    for (; ; ) {
      const deadline = new Deadline(this.#options.signal, SILENCE_MILLISECONDS);
      try {
        const response = await this.#get(url, "application/json", deadline);
        return parsed(await deadline.race(response.text()));
      } catch (error) {
        throwIfAborted(this.#options.signal);
        const failure = lost(error);
        if (failure.status === 401 && this.#token.refused()) continue;
        if (!failure.retryable) throw failure;
        await this.#pause(failure);
      } finally {
        deadline.end();
      }
    }
  }
  async #get(url, accept, deadline) {
    const headers = { ...this.#options.headers, ...await this.#token.headers(), accept };
    if (this.lastEventId && accept === "text/event-stream") headers["last-event-id"] = String(this.lastEventId);
    const init = { method: "GET", headers, signal: deadline.signal, cache: "no-store" };
    const response = await deadline.race(this.#fetch(url.href, init));
    if (!response.ok) throw await deadline.race(refusal(response));
    this.#token.accepted();
    this.#backoff.heard();
    return response;
  }
  #eventsUrl() {
    const { view, batchWindowMilliseconds: window, snapshot: snapshot2 } = this.#options;
    const url = new URL(this.#url);
    if (view) url.searchParams.set("view", view);
    if (window) url.searchParams.set("batch_window_ms", String(window));
    if (snapshot2 && !this.lastEventId) url.searchParams.set("snapshot", "true");
    return url;
  }
};
var NO_BODY_TO_POLL = new BatonError("invalid_url", "Only an address that ends with /events can be polled.");
function readable(body) {
  const stream = body;
  if (typeof stream?.getReader !== "function") throw NO_BODY;
  return stream.getReader();
}
function canStream() {
  return typeof Response === "undefined" || "body" in Response.prototype;
}
function throwIfAborted(signal) {
  if (signal?.aborted) throw reasonOf(signal);
}
function requireType(response, expected) {
  const type = response.headers.get("content-type") ?? "";
  if (!type.toLowerCase().startsWith(expected)) {
    throw new BatonError("unexpected_response", `The response is ${type || "of no type"}, not ${expected}.`);
  }
}
function parsed(json) {
  try {
    return JSON.parse(json);
  } catch (error) {
    throw new BatonError("unexpected_response", "The response is not JSON.", { cause: error });
  }
}

// src/posting.ts
var ATTEMPT_MILLISECONDS = 3e4;
async function post(posting2) {
  const { url, fetch, signal } = posting2;
  const [token, backoff] = [new TokenHolder(posting2.token), new Backoff(posting2.patienceMilliseconds)];
  const own = { "content-type": "application/json", "idempotency-key": posting2.idempotencyKey ?? randomId() };
  const body = JSON.stringify(posting2.content);
  for (; ; ) {
    const deadline = new Deadline(signal, ATTEMPT_MILLISECONDS);
    try {
      const headers = { ...posting2.headers, ...await token.headers(), ...own };
      const init = { method: "POST", headers, body, signal: deadline.signal, cache: "no-store" };
      return await accepted(await deadline.race(fetch(url, init)), deadline);
    } catch (error) {
      if (signal?.aborted) throw error;
      const failure = lost(error);
      if (failure.status === 401 && token.refused()) continue;
      const milliseconds = failure.retryable ? backoff.next((failure.retryAfterSeconds ?? 0) * 1e3) : null;
      if (milliseconds === null) throw failure;
      await pause(milliseconds, signal);
    } finally {
      deadline.end();
    }
  }
}
async function accepted(response, deadline) {
  if (!response.ok) throw await deadline.race(refusal(response));
  const answer = await deadline.race(response.text());
  try {
    return JSON.parse(answer);
  } catch (error) {
    throw new BatonError("unexpected_response", "The response is not JSON. Is this the address of a pod?", { cause: error });
  }
}
function randomId() {
  const digits = () => Math.random().toString(16).slice(2, 14).padEnd(12, "0");
  return globalThis.crypto?.randomUUID?.() ?? digits() + digits() + digits();
}

// src/streams.ts
var PATIENCE_MILLISECONDS2 = 6e4;
async function create(url, request, options = {}) {
  const { id, token } = await post(posting(routeAt(url, "v1/streams").href, request, options));
  const base = routeAt(url, ".").href;
  return { id, url: base, eventsUrl: eventsUrlOf({ url: base, id }).href, token };
}
async function cancel(stream, options = {}) {
  return post(posting(actionUrl(stream, "cancel"), {}, options));
}
async function input(stream, data, options = {}) {
  const { number } = await post(posting(actionUrl(stream, "inputs"), { data }, options));
  return number;
}
var posting = (url, content, options) => ({
  ...options,
  url,
  content,
  fetch: fetchOf(options.fetch),
  patienceMilliseconds: options.patienceMilliseconds ?? PATIENCE_MILLISECONDS2
});
export {
  BatonError,
  cancel,
  create,
  follow,
  input
};
