// Follows a stream for a page while anyone looks, and reports its answer at most once for each frame.

import type { StreamAddress } from "./addresses.js";
import { type Answer, AnswerFold, CONNECTING, IDLE } from "./answer.js";
import { BatonError } from "./errors.js";
import type { Event } from "./events.js";
import { type RequestOptions, lost } from "./fetch.js";
import { type FollowOptions, follow } from "./follow.js";
import { type StreamState, cancel, input } from "./streams.js";

/** The options of a page. They may change from one moment to the next. */
export interface AnswerOptions extends Omit<RequestOptions, "signal">, Pick<FollowOptions, "view" | "batchWindowMilliseconds"> {
  /** Called for each event, in order; events of the type `custom` are nowhere else. */
  onEvent?: ((event: Event) => void) | undefined;
}

/** What a page shows: the answer, and whether a pod is connected. */
export interface ShownAnswer extends Answer {
  readonly connected: boolean;
}

const NOTHING: ShownAnswer = { ...IDLE, connected: false };
const BEGINNING: ShownAnswer = { ...CONNECTING, connected: false };

// Browsers draw no frames for hidden pages.
const LONGEST_FRAME_MILLISECONDS = 100;

/**
 * The answer of one stream. It connects when the first listener comes, and closes the connection once the last has left,
 * unless another comes in the same turn: React's strict mode takes each listener away once, and adds it again. A later
 * listener makes it continue after the last event.
 */
export class AnswerStore {
  options: AnswerOptions = {};
  readonly #stream: StreamAddress | null;
  readonly #listeners = new Set<() => void>();
  readonly #fold = new AnswerFold();
  readonly initial: ShownAnswer;
  #shown: ShownAnswer;
  #connected = false;
  #lastEventId = 0;
  #over = false;
  #open: AbortController | null = null;
  #frame = false; // one is awaited

  constructor(stream: StreamAddress | null) {
    this.#stream = stream;
    this.initial = this.#shown = stream === null ? NOTHING : BEGINNING;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (!this.#open && !this.#over && this.#stream !== null) void this.#follow(this.#stream, (this.#open = new AbortController()));
    return () => {
      this.#listeners.delete(listener);
      queueMicrotask(() => this.#listeners.size || this.#close());
    };
  };

  readonly shown = (): ShownAnswer => this.#shown;

  /** Ask the generator to stop. */
  readonly stop = async (): Promise<StreamState> => cancel(this.#required(), this.#requestOptions());

  /** Send an input; return its number. */
  readonly send = async (data: unknown, options: { idempotencyKey?: string } = {}): Promise<number> =>
    input(this.#required(), data, { ...this.#requestOptions(), ...options });

  #required(): StreamAddress {
    if (this.#stream === null) throw new BatonError("invalid_url", "There is no stream yet.");
    return this.#stream;
  }

  #requestOptions(): RequestOptions {
    const { headers, patienceMilliseconds, fetch } = this.options;
    return { token: this.#token, headers, patienceMilliseconds, fetch };
  }

  /** Return the token of this moment, which the page may have replaced since the last request. */
  readonly #token = (): string | undefined | Promise<string | undefined> => {
    const { token } = this.options;
    return typeof token === "function" ? token() : (token ?? undefined);
  };

  async #follow(stream: StreamAddress, open: AbortController): Promise<void> {
    const { view, batchWindowMilliseconds, patienceMilliseconds = Number.POSITIVE_INFINITY } = this.options;
    const connection = (connected: boolean) => (): void => {
      this.#connected = connected;
      this.#draw();
    };
    try {
      const events = follow(stream, {
        ...{ ...this.#requestOptions(), view, batchWindowMilliseconds, patienceMilliseconds },
        ...{ snapshot: true, lastEventId: this.#lastEventId, signal: open.signal },
        ...{ onConnect: connection(true), onDisconnect: connection(false) },
      });
      for await (const event of events) {
        if (open.signal.aborted) return;
        this.#lastEventId = events.lastEventId;
        this.#take(event);
      }
    } catch (error) {
      if (open.signal.aborted) return;
      this.#fold.lose(lost(error));
    }
    this.#over = true;
    connection(false)();
  }

  #take(event: Event): void {
    this.#fold.take(event);
    try {
      this.options.onEvent?.(event);
    } catch (error) {
      report(error); // it is the page's, and not the stream's
    }
    this.#draw();
  }

  #close(): void {
    this.#open?.abort();
    this.#open = null;
    this.#connected = false;
  }

  /** Report what has changed, with the next frame. */
  #draw(): void {
    if (this.#frame) return;
    this.#frame = true;
    onNextFrame(() => {
      this.#frame = false;
      this.#shown = { ...this.#fold.answer, connected: this.#connected };
      for (const listener of [...this.#listeners]) listener();
    });
  }
}

/** Report an error as uncaught. Node and React Native have no `reportError`. */
function report(error: unknown): void {
  if (typeof globalThis.reportError === "function") reportError(error);
  else queueMicrotask(() => { throw error; });
}

function onNextFrame(draw: () => void): void {
  let drawn = false;
  const once = (): void => {
    clearTimeout(timer);
    if (!drawn) draw();
    drawn = true;
  };
  const hasFrames = typeof globalThis.requestAnimationFrame === "function";
  const timer = setTimeout(once, hasFrames ? LONGEST_FRAME_MILLISECONDS : 16);
  if (hasFrames) requestAnimationFrame(once);
}
