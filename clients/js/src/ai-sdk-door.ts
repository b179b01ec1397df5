// Requests to the pods' routes for the AI SDK. Each is repeated on any pod until its outcome is known.

import { reasonOf } from "./backoff.js";
import { BatonError, refusal } from "./errors.js";
import { EventStreamParser } from "./event-stream.js";
import { Deadline, type Fetch, type FetchResponse, type Token, TokenHolder, lost } from "./fetch.js";
import { onWake, type Pauses } from "./wake.js";

// Pods send a comment every 15 seconds. A connection that is silent for three times as long is dead.
const SILENCE_MILLISECONDS = 45_000;
// One that a page finds silent when it wakes up is replaced at once: the network may have changed meanwhile.
const SILENCE_AT_WAKING_MILLISECONDS = 5_000;
const RUN = "x-workflow-run-id";

export interface Request {
  method: "GET" | "POST";
  /** The address below `/v1/ai-sdk/chat`. */
  path: string;
  headers?: Record<string, string>;
  body?: string;
}

export interface DoorOptions {
  url: string | URL | undefined;
  token: Token | undefined;
  headers: () => Record<string, string> | Promise<Record<string, string>>;
  fetch: Fetch;
}

/** The routes of the pods at one address. */
export class Door {
  readonly #options: DoorOptions;

  constructor(options: DoorOptions) {
    this.#options = options;
  }

  /**
   * Send a request until a pod answers it; return the response, and a deadline that ends it.
   *
   * Throws a `BatonError` when a pod refuses it for good, or when none answers for too long.
   */
  async ask(request: Request, pauses: Pauses, signal?: AbortSignal): Promise<[FetchResponse, Deadline]> {
    const token = new TokenHolder(this.#options.token);
    for (;;) {
      const deadline = new Deadline(signal, SILENCE_MILLISECONDS);
      try {
        const response = await this.#try(request, token, deadline);
        pauses.heard();
        return [response, deadline];
      } catch (error) {
        deadline.end();
        if (signal?.aborted) throw reasonOf(signal);
        const failure = lost(error);
        if (failure.status === 401 && token.refused()) continue;
        if (!failure.retryable) throw failure;
        await pauses.after(failure, signal);
      }
    }
  }

  /** Send a request; return the answer's connection, or null if the pod has no answer. */
  async open(request: Request, pauses: Pauses, signal: AbortSignal): Promise<Connection | null> {
    const [response, deadline] = await this.ask(request, pauses, signal);
    const run = response.headers.get(RUN);
    if (run !== null) return new Connection(run, response, deadline);
    deadline.end();
    return null;
  }

  async #try({ method, path, body, ...request }: Request, token: TokenHolder, deadline: Deadline): Promise<FetchResponse> {
    const own = body === undefined ? {} : { "content-type": "application/json" };
    const given = await deadline.race(Promise.resolve(this.#options.headers()));
    const headers = { ...given, ...request.headers, ...(await deadline.race(token.headers())), ...own };
    const init = { method, headers, signal: deadline.signal, cache: "no-store" as const, ...(body === undefined ? {} : { body }) };
    const response = await deadline.race(this.#options.fetch(addressOf(this.#options.url, path), init));
    if (!response.ok) throw await deadline.race(refusal(response));
    token.accepted();
    return response;
  }
}

/** One connection over which chunks of an answer arrive. */
export class Connection {
  /** Names the answer in addresses. */
  readonly run: string;
  readonly #response: FetchResponse;
  readonly #deadline: Deadline;

  constructor(run: string, response: FetchResponse, deadline: Deadline) {
    this.run = run;
    this.#response = response;
    this.#deadline = deadline;
  }

  /** End the connection. */
  close(): void {
    this.#deadline.end();
  }

  /** Yield the data of each complete frame. */
  async *frames(): AsyncGenerator<string, void> {
    const [deadline, body] = [this.#deadline, readable(this.#response)];
    const parser = new EventStreamParser();
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // the parser removes it
    let heard = Date.now();
    const forget = onWake(() => {
      if (Date.now() - heard > SILENCE_AT_WAKING_MILLISECONDS) deadline.end();
    });
    try {
      for (;;) {
        const { done, value } = await deadline.race(body.read());
        if (done) return;
        heard = Date.now();
        deadline.extend();
        for (const { data } of parser.push(decoder.decode(value, { stream: true }))) yield data;
      }
    } finally {
      forget();
      deadline.end();
      body.cancel().catch(() => {}); // it may be broken already
    }
  }
}

interface Reader {
  read(): Promise<{ done: boolean; value?: Uint8Array }>;
  cancel(): Promise<void>;
}

function readable({ body }: FetchResponse): Reader {
  const stream = body as { getReader?: () => Reader } | null | undefined;
  if (typeof stream?.getReader !== "function") {
    throw new BatonError("unexpected_response", "This fetch gives no body that can be read as it arrives.");
  }
  return stream.getReader();
}

/** Return an address below that of the pods, by default the page's origin. */
function addressOf(pods: string | URL | undefined, path: string): string {
  const base = (globalThis as { location?: { href?: string } }).location?.href;
  try {
    const url = new URL(pods ?? "/", base);
    url.pathname = `${url.pathname.replace(/\/$/, "")}/v1/ai-sdk/chat`;
    return url.href + path;
  } catch (error) {
    throw new BatonError("invalid_url", `The address ${String(pods)} is not absolute.`, { cause: error });
  }
}
