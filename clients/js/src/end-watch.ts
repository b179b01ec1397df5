// Holds a request that is answered when the stream has ended, whoever ended it. It is also the producer's sign of life.

import { Backoff, pause } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import { Deadline, type Fetch, type Token, TokenHolder, lost } from "./fetch.js";

const WAIT_SECONDS = 20;
const ATTEMPT_MILLISECONDS = 45_000;
const GONE = new Set(["stream_not_found", "stream_expired"]);

/** How a stream ended: the response of `GET /v1/streams/{id}/end`. */
export interface End {
  status: "completed" | "failed" | "cancelled";
  finish_reason: string | null;
  error?: { code: string; message: string | null } | null;
}

export class EndWatch {
  readonly #url: string;
  readonly #fetch: Fetch;
  readonly #token: TokenHolder;

  constructor(url: string, token: Token | undefined, fetch: Fetch) {
    this.#url = url;
    this.#fetch = fetch;
    this.#token = new TokenHolder(token);
  }

  /**
   * Wait until the stream has ended. Returns null if the server cannot say, and when the signal fires.
   *
   * Throws if the stream no longer exists.
   */
  async wait(signal: AbortSignal): Promise<End | null> {
    const backoff = new Backoff(Number.POSITIVE_INFINITY);
    while (!signal.aborted) {
      const began = Date.now();
      try {
        const end = await this.ask(WAIT_SECONDS, signal);
        if (end) return end;
        if (Date.now() - began > 1000) backoff.reset();
      } catch (error) {
        if (signal.aborted) return null;
        const failure = lost(error);
        if (failure.status === 401 && this.#token.refused()) continue;
        if (GONE.has(failure.code)) throw failure;
        if (!failure.retryable) return null;
        await pause(backoff.next((failure.retryAfterSeconds ?? 0) * 1000) ?? 0, signal).catch(() => {});
        continue;
      }
      // A server that answers at once instead of waiting must not be asked in a loop.
      if (Date.now() - began <= 1000) await pause(backoff.next() ?? 0, signal).catch(() => {});
    }
    return null;
  }

  /** Ask once; null if the stream has not ended. */
  async ask(waitSeconds: number, signal?: AbortSignal): Promise<End | null> {
    const deadline = new Deadline(signal, ATTEMPT_MILLISECONDS);
    try {
      const headers = { ...(await this.#token.headers()), accept: "application/json" };
      const init = { method: "GET", headers, signal: deadline.signal, cache: "no-store" as const };
      const response = await deadline.race(this.#fetch(`${this.#url}?wait=${waitSeconds}`, init));
      if (!response.ok) throw await deadline.race(refusal(response));
      this.#token.accepted();
      if (response.status === 204) return null;
      const end: unknown = JSON.parse(await deadline.race(response.text()));
      return isEnd(end) ? end : null;
    } catch (error) {
      if (error instanceof SyntaxError) throw new BatonError("unexpected_response", "The response is not JSON.", { cause: error });
      throw error;
    } finally {
      deadline.end();
    }
  }
}

const isEnd = (found: unknown): found is End =>
  ["completed", "failed", "cancelled"].includes((found as End | null)?.status as string);
