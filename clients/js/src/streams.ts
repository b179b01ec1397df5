// Creates and cancels streams, and sends inputs to them: an approval, a message, or whatever a generator receives.

import { type StreamAddress, actionUrl, eventsUrlOf, routeAt } from "./addresses.js";
import { type RequestOptions, fetchOf } from "./fetch.js";
import type { components, operations } from "./openapi.js";
import { type Posting, post } from "./posting.js";

const PATIENCE_MILLISECONDS = 60_000;

export interface IdempotentOptions extends RequestOptions {
  /** A request with a key that was used before changes nothing. By default, a new one for each call, which its retries share. */
  idempotencyKey?: string | undefined;
}

/** What a stream answers, and how: the body of `POST /v1/streams`. */
export type StreamRequest = components["schemas"]["CreateStream"];

/** A stream and its state: the response of `POST /v1/streams/{id}/cancel`. */
export type StreamState = operations["cancel_stream"]["responses"][200 | 202]["content"]["application/json"];

/** A stream that was created. `follow`, `cancel` and `input` take it as the address of the stream. */
export interface CreatedStream {
  id: string;
  /** The address of the pods, as it was given, but absolute. */
  url: string;
  /** The absolute address of its events. */
  eventsUrl: string;
  /** A token for its viewers, if the pod has a key to sign one with. */
  token: string | null;
}

/**
 * Create a stream on the pods at `url`. A request whose response is lost is repeated, and one stream is created. The key
 * needs the scope `create`.
 *
 * Throws a `BatonError` when a pod refuses it.
 */
export async function create(url: string | URL, request: StreamRequest, options: IdempotentOptions = {}): Promise<CreatedStream> {
  type Created = operations["create_stream"]["responses"][200 | 201]["content"]["application/json"];
  const { id, token } = await post<Created>(posting(routeAt(url, "v1/streams").href, request, options));
  const base = routeAt(url, ".").href;
  return { id, url: base, eventsUrl: eventsUrlOf({ url: base, id }).href, token };
}

/**
 * Ask the generator of a stream to stop; return the stream's state. The stream ends as `cancelled` soon after. Doing it
 * again, or after the end, changes nothing. The token needs the scope `cancel`.
 *
 * Throws a `BatonError` when a pod refuses it.
 */
export async function cancel(stream: StreamAddress, options: RequestOptions = {}): Promise<StreamState> {
  return post(posting(actionUrl(stream, "cancel"), {}, options));
}

/**
 * Send an input, any JSON but null, to a stream; return its number. A request whose response is lost is repeated, and the
 * stream gets the input once. The token needs the scope `input`.
 *
 * Throws a `BatonError` when a pod refuses it, with the code `stream_ended` after the stream's end.
 */
export async function input(stream: StreamAddress, data: unknown, options: IdempotentOptions = {}): Promise<number> {
  const { number } = await post<components["schemas"]["SentInput"]>(posting(actionUrl(stream, "inputs"), { data }, options));
  return number;
}

const posting = (url: string, content: unknown, options: IdempotentOptions): Posting => ({
  ...options,
  url,
  content,
  fetch: fetchOf(options.fetch),
  patienceMilliseconds: options.patienceMilliseconds ?? PATIENCE_MILLISECONDS,
});
