// Sends an input to a stream: an approval, a message, or whatever its generator receives.

import { absolute, streamUrl } from "./addresses.js";
import { BatonError } from "./errors.js";
import { type Fetch, type Token, fetchOf } from "./fetch.js";
import { post } from "./posting.js";

const PATIENCE_MILLISECONDS = 60_000;

export interface SendInputOptions {
  /** An API key or a token of the stream with the scope `input`, or a function that returns one. */
  token?: Token;
  /** More headers for each request. */
  headers?: Record<string, string>;
  /** Sending again with the same key sends nothing new. By default, a new one for each call, which its retries share. */
  idempotencyKey?: string;
  /** Gives up, and throws the signal's reason. The input may have been sent. */
  signal?: AbortSignal;
  /** Give up when no pod has answered for this long. */
  patienceMilliseconds?: number;
  /** In place of the global `fetch`. */
  fetch?: Fetch;
}

/**
 * Send an input, any JSON but null, to the stream whose events are at `url` (its `events_url`); return its number. A
 * request whose response is lost is repeated, and the stream gets the input once.
 *
 * Throws a `BatonError` when a pod refuses it, with the code `stream_ended` after the stream's end.
 */
export async function sendInput(url: string | URL, data: unknown, options: SendInputOptions = {}): Promise<number> {
  const address = streamUrl(absolute(url));
  if (address === null) throw new BatonError("invalid_url", "Give the address of the stream's events: it ends with /events.");
  address.pathname += "/inputs";
  const { token, headers, idempotencyKey, signal } = options;
  const { number } = await post<{ number: number }>({
    url: address.href,
    content: { data },
    ...{ token, headers, idempotencyKey, signal },
    fetch: fetchOf(options.fetch),
    patienceMilliseconds: options.patienceMilliseconds ?? PATIENCE_MILLISECONDS,
  });
  return number;
}
