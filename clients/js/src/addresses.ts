// The addresses of a stream's routes, from that of its events.

import { BatonError } from "./errors.js";

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

/** Return the address of a stream from that of its events, or null if that is not one of Baton's. */
export function streamUrl(eventsUrl: URL): URL | null {
  if (!eventsUrl.pathname.endsWith("/events")) return null;
  const url = new URL(eventsUrl);
  url.pathname = url.pathname.slice(0, -"/events".length);
  for (const name of FOLLOWING) url.searchParams.delete(name);
  return url;
}
