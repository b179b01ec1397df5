// Follows one stream to its end, through any number of connections, to any pods.

import { type StreamAddress, eventsUrlOf } from "./addresses.js";
import { Backoff, pause, reasonOf } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import { EventStreamParser, type ServerSentEvent } from "./event-stream.js";
import type { Event } from "./events.js";
import { Deadline, type Fetch, type FetchResponse, type RequestOptions, TokenHolder, fetchOf, lost } from "./fetch.js";
import { AnswerProgress, stateUrl } from "./polling.js";

// Pods send a comment every 15 seconds. A connection that is silent for three times as long is dead.
const SILENCE_MILLISECONDS = 45_000;
const PATIENCE_MILLISECONDS = 60_000;
const POLL_SECONDS = 2;
// A pod that leaves answers at once instead of waiting. It must not be asked in a loop.
const LEAST_POLL_MILLISECONDS = 500;

export interface FollowOptions extends RequestOptions {
  /** Continue after this event: the `lastEventId` of an earlier `follow`. */
  lastEventId?: number | undefined;
  /** Begin with one event that holds the answer so far, in place of all events up to there. */
  snapshot?: boolean | undefined;
  /** `answer`: only the types `text`, `reset` and `done`. */
  view?: "full" | "answer" | undefined;
  /** Have pods gather events for this long before each write. */
  batchWindowMilliseconds?: number | undefined;
  /** In place of the global `fetch`. Without a body that can be read as it arrives, the stream is polled. */
  fetch?: Fetch | undefined;
  /** Called when a pod has answered, and continues after `lastEventId`. */
  onConnect?: ((connection: { pod: string; lastEventId: number }) => void) | undefined;
  /** Called when a connection is lost. The next try follows after a pause. */
  onDisconnect?: ((lost: { error: BatonError; lastEventId: number; pauseMilliseconds: number }) => void) | undefined;
}

/** The events of a stream. `lastEventId` is the number of the one that was yielded last. */
export interface Following extends AsyncIterableIterator<Event> {
  readonly lastEventId: number;
}

/**
 * Yield the events of a stream until its `done`, each once and in order. A lost connection continues on any pod after the
 * last event. Leaving the loop closes the connection.
 *
 * Throws a `BatonError` when a pod refuses the stream for good, or when no pod has answered for a minute.
 */
export function follow(stream: StreamAddress, options: FollowOptions = {}): Following {
  return new Follower(eventsUrlOf(stream), options);
}

// A response whose body cannot be read as it arrives.
const NO_BODY = new BatonError("unexpected_response", "This fetch gives no body that can be read as it arrives.");

class Follower implements Following {
  lastEventId: number;
  readonly #url: URL;
  readonly #options: FollowOptions;
  readonly #fetch: Fetch;
  readonly #token: TokenHolder;
  readonly #backoff: Backoff;
  readonly #events: AsyncGenerator<Event, void>;
  #retryMilliseconds: number | undefined;
  #over = false;

  constructor(url: URL, options: FollowOptions) {
    this.#url = url;
    this.#options = options;
    this.lastEventId = options.lastEventId ?? 0;
    this.#fetch = fetchOf(options.fetch);
    this.#token = new TokenHolder(options.token);
    this.#backoff = new Backoff(options.patienceMilliseconds ?? PATIENCE_MILLISECONDS);
    this.#events = this.#run();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<Event, void>> {
    return this.#events.next();
  }

  return(): Promise<IteratorResult<Event, void>> {
    return this.#events.return();
  }

  async *#run(): AsyncGenerator<Event, void> {
    let polls = !this.#options.fetch && !canStream();
    while (!this.#over) {
      let failure: BatonError;
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
        this.#retryMilliseconds = undefined;
      }
      if (!this.#over) await this.#pause(failure);
    }
  }

  async #pause(error: BatonError): Promise<void> {
    const least = this.#retryMilliseconds ?? (error.retryAfterSeconds ?? 0) * 1000;
    const pauseMilliseconds = this.#backoff.next(least);
    if (pauseMilliseconds === null) {
      throw new BatonError("unreachable", "No pod has answered for too long.", { retryable: true, cause: error });
    }
    this.#options.onDisconnect?.({ error, lastEventId: this.lastEventId, pauseMilliseconds });
    await pause(pauseMilliseconds, this.#options.signal);
  }

  /** Follow the stream over one connection. */
  async *#connection(): AsyncGenerator<Event, void> {
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

  async *#messages(body: Reader, deadline: Deadline): AsyncGenerator<ServerSentEvent> {
    const parser = new EventStreamParser();
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // the parser removes it
    try {
      for (;;) {
        const { done, value } = await deadline.race(body.read());
        if (done) return;
        deadline.extend();
        const found = parser.push(decoder.decode(value, { stream: true }));
        this.#retryMilliseconds = parser.retryMilliseconds ?? this.#retryMilliseconds;
        yield* found;
      }
    } finally {
      body.cancel().catch(() => {}); // it may be broken already
    }
  }

  #received({ id, data }: ServerSentEvent): Event {
    const event = parsed<Event | FailureEvent>(data);
    if (event.type === "error") throw new BatonError(event.error.code, event.error.message ?? "The stream cannot be followed.");
    if (!/^[0-9]+$/.test(id)) throw new BatonError("unexpected_response", "An event has no number: this is no stream of Baton's.");
    this.lastEventId = Number(id);
    this.#backoff.reset();
    this.#over = event.type === "done";
    return event;
  }

  /** Follow the stream by asking for its state. Each response ends, so any `fetch` can read it. */
  async *#poll(): AsyncGenerator<Event, void> {
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

  async #state(url: URL): Promise<Parameters<AnswerProgress["take"]>[0]> {
    for (;;) {
      const deadline = new Deadline(this.#options.signal, SILENCE_MILLISECONDS);
      try {
        const response = await this.#get(url, "application/json", deadline);
        return parsed(await deadline.race(response.text()));
      } catch (error) {
        throwIfAborted(this.#options.signal);
        const failure = lost(error);
        if (failure.status === 401 && this.#token.refused()) continue;
        if (!failure.retryable) throw failure;
        await this.#pause(failure); // here, because what has been yielded must be remembered
      } finally {
        deadline.end();
      }
    }
  }

  async #get(url: URL, accept: string, deadline: Deadline): Promise<FetchResponse> {
    const headers: Record<string, string> = { ...this.#options.headers, ...(await this.#token.headers()), accept };
    if (this.lastEventId && accept === "text/event-stream") headers["last-event-id"] = String(this.lastEventId);
    const init = { method: "GET", headers, signal: deadline.signal, cache: "no-store" as const };
    const response = await deadline.race(this.#fetch(url.href, init));
    if (!response.ok) throw await deadline.race(refusal(response));
    this.#token.accepted();
    this.#backoff.heard();
    return response;
  }

  #eventsUrl(): URL {
    const { view, batchWindowMilliseconds: window, snapshot } = this.#options;
    const url = new URL(this.#url);
    if (view) url.searchParams.set("view", view);
    if (window) url.searchParams.set("batch_window_ms", String(window));
    if (snapshot && !this.lastEventId) url.searchParams.set("snapshot", "true");
    return url;
  }
}

interface Reader {
  read(): Promise<{ done: boolean; value?: Uint8Array | undefined }>;
  cancel(): Promise<void>;
}

interface FailureEvent {
  type: "error";
  error: { code: string; message: string | null };
}

const NO_BODY_TO_POLL = new BatonError("invalid_url", "Only an address that ends with /events can be polled.");

function readable(body: unknown): Reader {
  const stream = body as { getReader?: () => Reader } | null | undefined;
  if (typeof stream?.getReader !== "function") throw NO_BODY;
  return stream.getReader();
}

/** Whether the global `fetch` gives bodies that can be read as they arrive. React Native's own does not. */
function canStream(): boolean {
  return typeof Response === "undefined" || "body" in Response.prototype;
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw reasonOf(signal);
}

function requireType(response: FetchResponse, expected: string): void {
  const type = response.headers.get("content-type") ?? "";
  if (!type.toLowerCase().startsWith(expected)) {
    throw new BatonError("unexpected_response", `The response is ${type || "of no type"}, not ${expected}.`);
  }
}

function parsed<T>(json: string): T {
  try {
    return JSON.parse(json) as T;
  } catch (error) {
    throw new BatonError("unexpected_response", "The response is not JSON.", { cause: error });
  }
}
