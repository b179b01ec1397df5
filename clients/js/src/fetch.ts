// What this package needs of `fetch`: the global one, Expo's, and a test's all fit.

import { reasonOf } from "./backoff.js";
import { BatonError } from "./errors.js";

export interface FetchInit {
  method: string;
  headers: Record<string, string>;
  body?: string;
  signal: AbortSignal;
  cache: "no-store";
}

export interface FetchResponse {
  readonly status: number;
  readonly ok: boolean;
  readonly headers: { get(name: string): string | null };
  readonly body?: unknown;
  text(): Promise<string>;
}

export type Fetch = (url: string, init: FetchInit) => Promise<FetchResponse>;

/** A token, or a function that returns one. The function is called for the first request, and again after a 401. */
export type Token = string | (() => string | undefined | Promise<string | undefined>);

/** What every request takes. */
export interface RequestOptions {
  /** An API key, a token of the stream, or a function that returns one; it is called again when a pod refuses the last. */
  token?: Token | null | undefined;
  /** More headers for each request. */
  headers?: Record<string, string> | undefined;
  /** Gives up: the call throws the signal's reason. What was requested may have happened. */
  signal?: AbortSignal | undefined;
  /** Give up when no pod has answered for this long. */
  patienceMilliseconds?: number | undefined;
  /** In place of the global `fetch`. */
  fetch?: Fetch | undefined;
}

/** Return the `fetch` to use. The global one is looked up now, because frameworks and tests replace it. */
export const fetchOf = (given: Fetch | undefined): Fetch => given ?? ((url, init) => globalThis.fetch(url, init));

/** Keeps a token until a pod refuses it. */
export class TokenHolder {
  readonly #given: Token | null | undefined;
  #token: string | undefined;
  #known = false;
  #refused = false;

  constructor(given: Token | null | undefined) {
    this.#given = given;
  }

  /** Return the headers for the next request. */
  async headers(): Promise<Record<string, string>> {
    if (!this.#known) {
      this.#token = typeof this.#given === "function" ? await this.#given() : (this.#given ?? undefined);
      this.#known = true;
    }
    return this.#token ? { authorization: `Bearer ${this.#token}` } : {};
  }

  /** Note that a pod accepted the token. */
  accepted(): void {
    this.#refused = false;
  }

  /** Note a 401. Return whether another token is worth a try: not for a second refusal in a row. */
  refused(): boolean {
    const again = typeof this.#given === "function" && !this.#refused;
    this.#refused = true;
    this.#known = false;
    return again;
  }
}

/** One request's abort signal: it follows the caller's, and fires after a silence. */
export class Deadline {
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  readonly #milliseconds: number;
  readonly #stop = (): void => this.#controller.abort(this.#outer?.reason);
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(outer: AbortSignal | undefined, milliseconds: number) {
    this.#outer = outer;
    this.#milliseconds = milliseconds;
    if (outer?.aborted) this.#stop();
    else outer?.addEventListener("abort", this.#stop);
    this.extend();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Start the silence again: something arrived. */
  extend(): void {
    clearTimeout(this.#timer);
    const silent = (): void =>
      this.#controller.abort(new BatonError("unreachable", "The connection was silent for too long.", { retryable: true }));
    this.#timer = setTimeout(silent, this.#milliseconds);
  }

  /** End the request, if it still runs. */
  end(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#stop);
    this.#controller.abort();
  }

  /** Wait for `work`, but not beyond the abort: some implementations of `fetch` do not watch their signal. */
  race<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const stop = (): void => reject(reasonOf(this.signal));
      if (this.signal.aborted) stop();
      this.signal.addEventListener("abort", stop, { once: true });
      work.then(resolve, reject).finally(() => this.signal.removeEventListener("abort", stop));
    });
  }
}

/** Return the error for whatever a request threw. Anything but an error of this package is a lost connection. */
export function lost(error: unknown): BatonError {
  if (error instanceof BatonError) return error;
  return new BatonError("unreachable", "The connection was lost.", { retryable: true, cause: error });
}
