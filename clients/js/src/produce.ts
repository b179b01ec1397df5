// `baton-stream/produce`: write an answer into a stream, from a route handler or any other process.

import { reasonOf } from "./backoff.js";
import { Appender, ClosedAsFailed, EndedElsewhere, type Failure } from "./appender.js";
import { type Address, type AppendOptions, type CreateOptions, create, given } from "./creation.js";
import { type End, EndWatch } from "./end-watch.js";
import { BatonError } from "./errors.js";
import type { Message } from "./events.js";
import { type Fetch, fetchOf } from "./fetch.js";
import { Detecting, type FormatName } from "./formats/detect.js";
import { describe } from "./failures.js";
import { randomId } from "./posting.js";
import { type Items, type Source, itemsOf } from "./source.js";
import { Surrogates } from "./surrogates.js";

export { BatonError, type ErrorCode } from "./errors.js";
export type { AppendOptions, CreateOptions } from "./creation.js";
export type { Message } from "./events.js";
export type { Fetch, Token } from "./fetch.js";
export type { FormatName } from "./formats/detect.js";
export { ownTools } from "./own-tools.js";
export type { Source } from "./source.js";

const PATIENCE_MILLISECONDS = 120_000;

interface CommonOptions {
  /** The kind of source. By default, its first item shows it. */
  format?: FormatName;
  /** Stops producing: the stream ends as failed, with the code `aborted`. */
  signal?: AbortSignal;
  /** Aborted when the stream has ended elsewhere, for a source that takes its signal. Aborting it is like `signal`. */
  abort?: AbortController;
  /** What viewers see of an error that the source throws. By default a code and a sentence without details. */
  onError?: (error: unknown) => { code: string; message: string } | undefined;
  /** Who writes, for the fence. By default a random id: no two calls of `produce` are one producer. */
  producerId?: string;
  /** A greater epoch takes the stream over from a producer with the same id and a smaller one. */
  epoch?: number;
  /** Give up when no pod has accepted an append for this long. */
  patienceMilliseconds?: number;
  fetch?: Fetch;
}

/** Either create a stream or append to one. */
export type ProduceOptions = CommonOptions & ({ create: CreateOptions; append?: never } | { append: AppendOptions; create?: never });

/** How the stream ended. `error` is what viewers see, `cause` what the source threw. */
export interface Result {
  id: string | null;
  status: "completed" | "failed" | "cancelled";
  finishReason: string | null;
  error: { code: string; message: string } | null;
  /** How many messages of this producer are in the stream. */
  accepted: number;
  cause?: unknown;
}

/** An answer that is being written. */
export interface Production {
  /** The stream's id; null if its address has a path instead. */
  readonly id: string | null;
  /** The path at which viewers follow it, for `follow` or `EventSource`. */
  readonly eventsUrl: string | null;
  /** A token for its viewers, if the pods have a key to sign one with. */
  readonly token: string | null;
  /** Aborted when the stream has ended elsewhere, or this producer must stop. */
  readonly signal: AbortSignal;
  /**
   * Settles when the stream has ended. Rejects with a `BatonError` if the end could not be written. Nothing need
   * await it, but a serverless platform must keep the process until then: `after(() => production.done)` in Next.js.
   */
  readonly done: Promise<Result>;
}

/** What a source that is a function is called with, once the stream exists. */
export interface SourceContext {
  id: string | null;
  signal: AbortSignal;
}

type Eventually<T> = T | PromiseLike<T>;

/** A source, a promise of one, or a function that returns one and gets the signal to stop it with. */
export type SourceOrFunction = Eventually<Source> | ((context: SourceContext) => Eventually<Source>);

/**
 * Write what a source yields into a stream. Returns as soon as the stream exists; the rest happens in the background.
 *
 * The source may be an AI SDK `fullStream` or UI message stream, a stream of OpenAI's or Anthropic's SDK, or an iterable
 * of strings and Baton's events. Throws a `BatonError` if the stream cannot be created.
 */
export async function produce(source: SourceOrFunction, options: ProduceOptions): Promise<Production> {
  const fetch = fetchOf(options.fetch);
  const patience = options.patienceMilliseconds ?? PATIENCE_MILLISECONDS;
  const address = options.create ? await create(options.create, fetch, patience, options.signal) : given(options.append);
  const producer = new Producer(address, options, fetch, patience);
  const done = producer.run(source);
  done.catch(() => {}); // an error that nobody awaits must not end the process
  const { id, eventsUrl, token } = address;
  return { id, eventsUrl, token, signal: producer.signal, done };
}

/** Why a producer stops before its source ends. */
type Stop = { by: "caller"; reason: unknown } | { by: "end"; end: End } | { by: "failure"; failure: Failure };

class Producer {
  readonly #address: Address;
  readonly #options: ProduceOptions;
  readonly #appender: Appender;
  readonly #watch: EndWatch | null;
  readonly #controller: AbortController;
  readonly #watching = new AbortController();
  #stop: Stop | null = null;
  #interrupt: () => void = () => {};

  constructor(address: Address, options: ProduceOptions, fetch: Fetch, patienceMilliseconds: number) {
    this.#address = address;
    this.#options = options;
    this.#controller = options.abort ?? new AbortController();
    this.#watch = address.endUrl === null ? null : new EndWatch(address.endUrl, address.appendToken, fetch);
    this.#appender = new Appender({
      url: address.appendUrl,
      token: address.appendToken,
      fetch,
      producerId: options.producerId ?? randomId(),
      epoch: options.epoch ?? 0,
      patienceMilliseconds,
      onFailure: (failure) => this.#stopFor({ by: "failure", failure }),
    });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  async run(source: SourceOrFunction): Promise<Result> {
    const unlisten = this.#listen();
    void this.#watchEnd();
    let cause: unknown;
    try {
      const last = await this.#readAll(source).catch((error: unknown) => {
        cause = error;
        return this.#describe(error);
      });
      return await this.#finish(last, cause);
    } finally {
      unlisten();
      this.#watching.abort();
    }
  }

  /** Note the caller's aborts. */
  #listen(): () => void {
    const signals = [this.#options.signal, this.#controller.signal].filter((signal) => signal !== undefined);
    const listeners = signals.map((signal) => {
      const stop = (): void => this.#stopFor({ by: "caller", reason: reasonOf(signal) });
      if (signal.aborted) stop();
      signal.addEventListener("abort", stop, { once: true });
      return () => signal.removeEventListener("abort", stop);
    });
    return () => listeners.forEach((remove) => remove());
  }

  async #watchEnd(): Promise<void> {
    try {
      const end = await this.#watch?.wait(this.#watching.signal);
      if (end && !this.#watching.signal.aborted) this.#stopFor({ by: "end", end });
    } catch (error) {
      if (!this.#watching.signal.aborted) this.#stopFor({ by: "failure", failure: error as BatonError });
    }
  }

  /** Stop reading the source. The first reason counts. */
  #stopFor(stop: Stop): void {
    if (this.#stop) return;
    this.#stop = stop;
    this.#interrupt();
    this.#controller.abort(stop.by === "caller" ? stop.reason : new BatonError(...describeStop(stop)));
  }

  /** Append what the source yields; return the message that ends the stream. Stops when there is a reason to stop. */
  async #readAll(source: SourceOrFunction): Promise<Message> {
    const opening = typeof source === "function" ? source({ id: this.#address.id, signal: this.signal }) : source;
    const opened = await this.#orStop(Promise.resolve(opening));
    if (opened === STOPPED) {
      Promise.resolve(opening).then((found) => itemsOf(found).cancel(undefined)).catch(() => {});
      return ABORTED;
    }
    const items = itemsOf(opened);
    try {
      return await this.#readItems(items);
    } finally {
      if (this.#stop) items.cancel(reasonOf(this.signal));
    }
  }

  async #readItems(items: Items): Promise<Message> {
    const format = new Detecting(this.#options.format, (error) => this.#describe(error));
    const characters = new Surrogates();
    for (;;) {
      const step = await this.#orStop(items.next());
      if (step === STOPPED) return ABORTED;
      const found = step.done ? format.end() : format.take(step.value);
      const messages = found.map((message) => characters.join(message)).filter((message) => message !== null);
      const last = messages.findIndex(({ type }) => type === "finish" || type === "error");
      const full = this.#appender.push(last === -1 ? messages : messages.slice(0, last));
      if (last !== -1) {
        if (!step.done) items.cancel(undefined); // nothing may follow
        return messages[last]!;
      }
      if (full && (await this.#orStop(full)) === STOPPED) return ABORTED;
    }
  }

  /** Wait for `work`, or return STOPPED as soon as there is a reason to stop. */
  #orStop<T>(work: Promise<T>): Promise<T | typeof STOPPED> {
    return new Promise((resolve, reject) => {
      this.#interrupt = () => resolve(STOPPED);
      if (this.#stop) this.#interrupt();
      work.then(resolve, reject);
    });
  }

  /** End the stream with this message, unless it has ended already. */
  async #finish(last: Message, cause: unknown): Promise<Result> {
    this.#watching.abort(); // from here on, the end is this producer's own, or an append says otherwise
    if (this.#stop?.by === "end") return this.#ended(this.#stop.end);
    try {
      await this.#appender.finish(last);
    } catch (failure) {
      return await this.#failed(failure as Failure);
    }
    if (last.type === "error") {
      const { code, message } = last;
      return { ...this.#result("failed", "error"), error: { code, message }, ...(cause === undefined ? {} : { cause }) };
    }
    return this.#result("completed", last.type === "finish" ? (last.finish_reason ?? "stop") : "stop");
  }

  async #failed(failure: Failure): Promise<Result> {
    if (failure instanceof ClosedAsFailed) {
      const { code, message } = failure.error;
      return { ...this.#result("failed", "error"), error: { code, message }, cause: failure.error };
    }
    if (!(failure instanceof EndedElsewhere)) throw failure;
    const end = await this.#watch?.ask(0).catch(() => null);
    if (end) return this.#ended(end);
    const cancelled = failure.code === "cancelled" || failure.code === "unwatched";
    const { code, message } = failure;
    if (cancelled) return this.#result("cancelled", code);
    return { ...this.#result("failed", "error"), error: { code, message } };
  }

  #ended({ status, finish_reason: reason, error }: End): Result {
    return { ...this.#result(status, reason), error: error ? { code: error.code, message: error.message ?? "" } : null };
  }

  #result(status: Result["status"], finishReason: string | null): Result {
    return { id: this.#address.id, status, finishReason, error: null, accepted: this.#appender.accepted };
  }

  #describe(error: unknown): Message {
    return { type: "error", ...(this.#options.onError?.(error) ?? describe(error)) };
  }
}

const STOPPED = Symbol("stopped");

const ABORTED: Message = {
  type: "error",
  code: "aborted",
  message: "The answer was stopped before it was complete.",
};

function describeStop(stop: Exclude<Stop, { by: "caller" }>): [string, string] {
  if (stop.by === "end") {
    const { status, finish_reason: reason, error } = stop.end;
    return [error?.code ?? reason ?? status, `The stream has ended as ${status}.`];
  }
  const { failure } = stop;
  return failure instanceof ClosedAsFailed ? [failure.error.code, failure.message] : [failure.code, failure.message];
}
