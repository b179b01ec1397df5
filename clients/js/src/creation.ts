// Where a producer writes: a stream that it creates, or one whose address it was given.

import { routeAt } from "./addresses.js";
import { BatonError } from "./errors.js";
import type { Fetch, Token } from "./fetch.js";
import { post } from "./posting.js";

const APPENDING = /\/v1\/stream\/([^/?#]+)$/;
const UUID = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

/** A stream to create: the fields of `POST /v1/streams`, and where. */
export interface CreateOptions {
  /** The address of a pod, or of the proxy in front of the pods, such as `https://pods.example.com`. */
  url: string | URL;
  /** An API key with the scopes `create` and `produce`, and those that its viewers' token is to have. */
  token?: Token;
  /** What the stream answers, for those who list streams. */
  input?: unknown;
  metadata?: Record<string, string | number | boolean>;
  /** Repeating a `produce` with the same key returns the same stream. By default, a new one for each call. */
  idempotencyKey?: string;
  maxDurationSeconds?: number;
  idleTimeoutSeconds?: number;
  cancelWhenUnwatchedSeconds?: number;
  /** What the stream's own token, for its viewers, allows. */
  viewers?: { scopes?: ("read" | "cancel" | "input")[]; view?: "full" | "answer" };
}

/** A stream that exists: its address below `/v1/stream/`, and a token with the scope `produce`. */
export interface AppendOptions {
  url: string | URL;
  token?: Token;
}

export interface Address {
  /** The stream's id; null if its address has a path instead. */
  id: string | null;
  /** The path at which viewers follow it; null without an id. */
  eventsUrl: string | null;
  /** A token for the viewers, if the pod has a key to sign one with. */
  token: string | null;
  appendUrl: string;
  appendToken: Token | undefined;
  endUrl: string | null;
}

/** Create a stream. Repeats the request with the same `Idempotency-Key` until its outcome is known. */
export async function create(options: CreateOptions, fetch: Fetch, patienceMilliseconds: number, signal?: AbortSignal): Promise<Address> {
  const url = routeAt(options.url, "v1/streams").href;
  const { idempotencyKey, token: key } = options;
  const request = { url, content: body(options), idempotencyKey, token: key, fetch, patienceMilliseconds, signal };
  const { id, events_url: eventsUrl, token, producer } = await post<Created>(request);
  if (!producer?.url) {
    throw new BatonError("unexpected_response", "The pod returned no address to append to. Is its release older than this package?");
  }
  const appendUrl = new URL(producer.url, url).href;
  return { ...given({ url: appendUrl }), id, eventsUrl, token: token ?? null, appendToken: producer.token ?? options.token };
}

/** Return where an existing stream is written. */
export function given({ url, token }: AppendOptions): Address {
  const appendUrl = new URL(url);
  const name = APPENDING.exec(appendUrl.pathname)?.[1];
  const id = name && UUID.test(name) ? name : null;
  const prefix = appendUrl.pathname.replace(APPENDING, "");
  const path = `${prefix}/v1/streams/${id}`;
  return {
    id,
    eventsUrl: id && `${path}/events`,
    token: null,
    appendUrl: appendUrl.href,
    appendToken: token,
    endUrl: id && new URL(`${path}/end`, appendUrl).href,
  };
}

interface Created {
  id: string;
  events_url: string;
  token?: string | null;
  producer?: { url: string; token?: string | null };
}

function body(options: CreateOptions): object {
  const fields = {
    generator: "external",
    input: options.input ?? null,
    metadata: options.metadata,
    max_duration_seconds: options.maxDurationSeconds,
    idle_timeout_seconds: options.idleTimeoutSeconds,
    cancel_when_unwatched_seconds: options.cancelWhenUnwatchedSeconds,
    token: options.viewers,
  };
  return fields; // JSON leaves out what is undefined
}
