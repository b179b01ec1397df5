// Where a producer writes: a stream that it creates, or one whose address it was given.

import { Backoff, pause } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import { Deadline, type Fetch, type FetchResponse, type Token, TokenHolder, lost } from "./fetch.js";

const ATTEMPT_MILLISECONDS = 30_000;
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
  viewers?: { scopes?: ("read" | "cancel")[]; view?: "full" | "answer" };
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
  const base = new URL(options.url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const found = await created(new URL("v1/streams", base).href, options, fetch, patienceMilliseconds, signal);
  const { id, events_url: eventsUrl, token, producer } = found;
  if (!producer?.url) {
    throw new BatonError("unexpected_response", "The pod returned no address to append to. Is its release older than this package?");
  }
  const appendUrl = new URL(producer.url, base).href;
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

async function created(url: string, options: CreateOptions, fetch: Fetch, patience: number, signal?: AbortSignal): Promise<Created> {
  const [token, backoff] = [new TokenHolder(options.token), new Backoff(patience)];
  const key = options.idempotencyKey ?? randomId();
  for (;;) {
    const deadline = new Deadline(signal, ATTEMPT_MILLISECONDS);
    try {
      const headers = { ...(await token.headers()), "content-type": "application/json", "idempotency-key": key };
      const init = { method: "POST", headers, body: JSON.stringify(body(options)), signal: deadline.signal, cache: "no-store" as const };
      return await accepted(await deadline.race(fetch(url, init)), deadline);
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

async function accepted(response: FetchResponse, deadline: Deadline): Promise<Created> {
  if (!response.ok) throw await deadline.race(refusal(response));
  const answer = await deadline.race(response.text());
  try {
    return JSON.parse(answer) as Created;
  } catch (error) {
    throw new BatonError("unexpected_response", "The response is not JSON. Is this the address of a pod?", { cause: error });
  }
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

/** Return a random id. Older runtimes have no `crypto`. */
export function randomId(): string {
  const digits = (): string => Math.random().toString(16).slice(2, 14).padEnd(12, "0");
  return globalThis.crypto?.randomUUID?.() ?? digits() + digits() + digits();
}
