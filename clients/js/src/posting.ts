// Repeats a POST that has an `Idempotency-Key` until its outcome is known.

import { Backoff, pause } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import { Deadline, type Fetch, type FetchResponse, type Token, TokenHolder, lost } from "./fetch.js";

const ATTEMPT_MILLISECONDS = 30_000;

export interface Posting {
  url: string;
  content: unknown;
  idempotencyKey?: string | undefined; // by default a random one
  token?: Token | null | undefined;
  headers?: Record<string, string> | undefined;
  fetch: Fetch;
  patienceMilliseconds: number;
  signal?: AbortSignal | undefined;
}

/** Return the JSON of the response. Throws a `BatonError` when a pod refuses, or when none answers for too long. */
export async function post<T>(posting: Posting): Promise<T> {
  const { url, fetch, signal } = posting;
  const [token, backoff] = [new TokenHolder(posting.token), new Backoff(posting.patienceMilliseconds)];
  const own = { "content-type": "application/json", "idempotency-key": posting.idempotencyKey ?? randomId() };
  const body = JSON.stringify(posting.content);
  for (;;) {
    const deadline = new Deadline(signal, ATTEMPT_MILLISECONDS);
    try {
      const headers = { ...posting.headers, ...(await token.headers()), ...own };
      const init = { method: "POST", headers, body, signal: deadline.signal, cache: "no-store" as const };
      return await accepted<T>(await deadline.race(fetch(url, init)), deadline);
    } catch (error) {
      if (signal?.aborted) throw error;
      const failure = lost(error);
      if (failure.status === 401 && token.refused()) continue;
      const milliseconds = failure.retryable ? backoff.next((failure.retryAfterSeconds ?? 0) * 1000) : null;
      if (milliseconds === null) throw failure;
      await pause(milliseconds, signal);
    } finally {
      deadline.end();
    }
  }
}

async function accepted<T>(response: FetchResponse, deadline: Deadline): Promise<T> {
  if (!response.ok) throw await deadline.race(refusal(response));
  const answer = await deadline.race(response.text());
  try {
    return JSON.parse(answer) as T;
  } catch (error) {
    throw new BatonError("unexpected_response", "The response is not JSON. Is this the address of a pod?", { cause: error });
  }
}

/** Return a random id. Older runtimes have no `crypto`. */
export function randomId(): string {
  const digits = (): string => Math.random().toString(16).slice(2, 14).padEnd(12, "0");
  return globalThis.crypto?.randomUUID?.() ?? digits() + digits() + digits();
}
