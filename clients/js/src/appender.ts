// Appends messages to one stream over HTTP: in order, each once, one request at a time.
//
// What arrives while a request is in flight is gathered for the next. Each request has the producer's id, its epoch and a
// number, and is repeated with the same number and body until its outcome is known: the server drops a repetition.

import { Backoff, pause } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import type { Message } from "./events.js";
import { Deadline, type Fetch, type FetchResponse, type Token, TokenHolder, lost } from "./fetch.js";

export const CONTENT_TYPE = 'application/json; profile="urn:baton:events"';

const ATTEMPT_MILLISECONDS = 30_000;
const BATCH_BYTES = 256 * 1024;
const FULL_BYTES = 1024 * 1024;

/** Thrown if the stream has ended elsewhere: it was cancelled, or took too long. `code` says why. */
export class EndedElsewhere extends Error {
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

/** Thrown if the stream was closed as failed, because the server refused what was appended. */
export class ClosedAsFailed extends Error {
  constructor(readonly error: BatonError) {
    super(error.message);
  }
}

/** The server refused what was appended, and another append may be accepted. */
class Refused extends Error {
  constructor(readonly error: BatonError) {
    super(error.message);
  }
}

export type Failure = BatonError | EndedElsewhere | ClosedAsFailed;

export interface AppenderOptions {
  url: string;
  token: Token | undefined;
  fetch: Fetch;
  producerId: string;
  epoch: number;
  patienceMilliseconds: number;
  /** Called once, when no more can be appended. */
  onFailure: (failure: Failure) => void;
}

export class Appender {
  /** How many messages the server has accepted. */
  accepted = 0;
  readonly #options: AppenderOptions;
  readonly #token: TokenHolder;
  #waiting: string[] = [];
  #waitingBytes = 0;
  #seq = 0;
  #delivering: Promise<void> | null = null;
  #closing = false; // the last message that waits ends the stream
  #failure: Failure | null = null;

  constructor(options: AppenderOptions) {
    this.#options = options;
    this.#token = new TokenHolder(options.token);
  }

  /** Add messages. Returns a promise while too much is waiting: await it before the next call. */
  push(messages: Message[]): Promise<void> | null {
    if (this.#failure) return null;
    for (const message of messages) {
      const line = JSON.stringify(message);
      this.#waiting.push(line);
      this.#waitingBytes += line.length;
    }
    if (this.#waiting.length) this.#delivering ??= this.#deliver();
    return this.#waitingBytes > FULL_BYTES ? this.#delivering : null;
  }

  /** Append what waits and the last message, and close the stream. Throws a `Failure` if that is impossible. */
  async finish(last: Message): Promise<void> {
    this.push([last]);
    this.#closing = true;
    while (this.#delivering) await this.#delivering;
    if (this.#failure) throw this.#failure;
  }

  /** Append what waits. Never rejects. */
  async #deliver(): Promise<void> {
    try {
      await null; // gather what is pushed in this moment, and know whether it is the last
      while (this.#waiting.length) {
        const lines = this.#batch();
        await this.#accept(lines, this.#closing && !this.#waiting.length);
      }
    } catch (error) {
      this.#failure = error instanceof EndedElsewhere || error instanceof ClosedAsFailed ? error : lost(error);
      this.#options.onFailure(this.#failure);
    } finally {
      this.#delivering = null;
    }
  }

  #batch(): string[] {
    let [count, bytes] = [0, 0];
    while (count < this.#waiting.length && (count === 0 || bytes + this.#waiting[count]!.length <= BATCH_BYTES)) {
      bytes += this.#waiting[count++]!.length;
    }
    this.#waitingBytes -= bytes;
    return this.#waiting.splice(0, count);
  }

  /** Append these messages. If the server refuses them, end the stream with an error that says so, and throw it. */
  async #accept(lines: string[], closes: boolean): Promise<void> {
    try {
      await this.#append(lines, closes);
      this.accepted += lines.length;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.error.status === 413 && lines.length > 1) {
        const half = Math.ceil(lines.length / 2);
        await this.#accept(lines.slice(0, half), false);
        await this.#accept(lines.slice(half), closes);
        return;
      }
      await this.#closeAsFailed(error.error);
    }
  }

  async #closeAsFailed(error: BatonError): Promise<never> {
    this.#waiting = [];
    const { code, message } = error;
    try {
      await this.#append([JSON.stringify({ type: "error", code, message })], true);
    } catch (failure) {
      throw failure instanceof Refused ? error : failure;
    }
    this.accepted += 1;
    throw new ClosedAsFailed(error);
  }

  /** Send one request until its outcome is known. */
  async #append(lines: string[], closes: boolean): Promise<void> {
    const backoff = new Backoff(this.#options.patienceMilliseconds);
    for (;;) {
      const failure = await this.#attempt(`[${lines.join(",")}]`, closes);
      if (failure === null) {
        this.#seq += 1;
        return;
      }
      if (failure.status === 401 && this.#token.refused()) continue;
      if (!failure.retryable) throw isOfContent(failure.status) ? new Refused(failure) : failure;
      const milliseconds = backoff.next((failure.retryAfterSeconds ?? 0) * 1000);
      if (milliseconds === null) throw failure;
      await pause(milliseconds);
    }
  }

  /** Send one request once. Returns null if the server has the messages, or why it may not have them. */
  async #attempt(body: string, closes: boolean): Promise<BatonError | null> {
    const deadline = new Deadline(undefined, ATTEMPT_MILLISECONDS);
    try {
      const headers = {
        ...(await this.#token.headers()),
        "content-type": CONTENT_TYPE,
        "producer-id": this.#options.producerId,
        "producer-epoch": String(this.#options.epoch),
        "producer-seq": String(this.#seq),
        ...(closes ? { "stream-closed": "true" } : {}),
      };
      const init = { method: "POST", headers, body, signal: deadline.signal, cache: "no-store" as const };
      const response = await deadline.race(this.#options.fetch(this.#options.url, init));
      if (!response.ok) return await deadline.race(this.#refused(response));
      // A page of a proxy has no such header, and neither has a read, which a redirect makes of an append.
      if (response.headers.get("producer-epoch") === null) return NOT_APPENDED;
      this.#token.accepted();
      return null;
    } catch (error) {
      if (error instanceof EndedElsewhere || error instanceof Refused) throw error;
      return lost(error);
    } finally {
      deadline.end();
    }
  }

  async #refused(response: FetchResponse): Promise<BatonError> {
    const error = await refusal(response);
    const { status, headers } = response;
    if (status === 409 && headers.get("stream-closed")?.toLowerCase() === "true") {
      const known = error.code !== "unexpected_response";
      throw known ? new EndedElsewhere(error.code, error.message) : new EndedElsewhere("stream_closed", "The stream has ended.");
    }
    const epoch = headers.get("producer-epoch");
    if (status === 403 && epoch !== null) {
      const message = `Another producer writes this stream with the epoch ${epoch}; this one has ${this.#options.epoch}.`;
      return new BatonError("producer_fenced", message, { status });
    }
    const expected = headers.get("producer-expected-seq");
    if (status === 409 && expected !== null) {
      const message = `The server lacks appends that it accepted: it expects number ${expected}, not ${this.#seq}.`;
      this.#seq = Number(expected); // so that the stream can still be ended
      throw new Refused(new BatonError("producer_gap", message, { status }));
    }
    return error;
  }
}

const NOT_APPENDED = new BatonError(
  "unexpected_response",
  "The response does not say that anything was appended. Is this the address of a stream, without redirects?",
);

/** Whether a status refuses the content of a request, and not the request as such. */
const isOfContent = (status: number | undefined): boolean => status === 400 || status === 413 || status === 422;
