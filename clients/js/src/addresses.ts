// The addresses of a stream's routes.

import { BatonError } from "./errors.js";

/**
 * Which stream: the address of its events (its `events_url`), or its id and the address of a pod, of the proxy in front
 * of the pods, or of what they are mounted at. `create` returns one. An address may be relative to the page's.
 */
export type StreamAddress = string | URL | { readonly url: string | URL; readonly id: string };

const FOLLOWING = ["view", "snapshot", "batch_window_ms", "last_event_id", "lastEventId"];

/** Return an address that may be relative to the page's. */
export function absolute(url: string | URL): URL {
  const base = (globalThis as { location?: { href?: string } }).location?.href;
  try {
    return new URL(url, base);
  } catch (error) {
    throw new BatonError("invalid_url", `The address ${String(url)} is not absolute.`, { cause: error });
  }
}

/** Return the address of a route, given below that of the pods: a path without a slash at its start. */
export function routeAt(url: string | URL, path: string): URL {
  const base = absolute(url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return new URL(path, base);
}

/** Return the address of a stream's events. */
export function eventsUrlOf(stream: StreamAddress): URL {
  if (typeof stream === "string" || !("id" in stream)) return absolute(stream);
  if (!stream.id) throw new BatonError("invalid_url", "The id of the stream is empty.");
  return routeAt(stream.url, `v1/streams/${encodeURIComponent(stream.id)}/events`);
}

/** Return the address of a stream from that of its events, or null if that is not one of Baton's. */
export function streamUrl(eventsUrl: URL): URL | null {
  if (!eventsUrl.pathname.endsWith("/events")) return null;
  const url = new URL(eventsUrl);
  url.pathname = url.pathname.slice(0, -"/events".length);
  for (const name of FOLLOWING) url.searchParams.delete(name);
  return url;
}

/** Return the address of what can be done with a stream, such as `cancel`. */
export function actionUrl(stream: StreamAddress, action: string): string {
  const url = streamUrl(eventsUrlOf(stream));
  if (url === null) throw new BatonError("invalid_url", "Give the address of the stream's events: it ends with /events.");
  url.pathname += `/${action}`;
  return url.href;
}
