// `baton-stream/ai-sdk`: a transport for `useChat` of AI SDK 5, 6 and 7.

import { type Answer, type Chunk, streamOf } from "./ai-sdk-answer.js";
import { type Connection, Door } from "./ai-sdk-door.js";
import { reasonOf } from "./backoff.js";
import { BatonError } from "./errors.js";
import { type Fetch, type Token, fetchOf } from "./fetch.js";
import { randomId } from "./posting.js";
import { Pauses } from "./wake.js";

export { BatonError, type ErrorCode } from "./errors.js";
export type { Fetch, Token } from "./fetch.js";

const PATIENCE_MILLISECONDS = 60_000;
const WITHOUT_ANSWER = new Set([404, 410]);

type Given<T> = T | (() => T | Promise<T>);

export interface ChatTransportOptions {
  /** The address of a pod, or of the proxy in front of the pods. By default, the page's origin. */
  url?: string | URL;
  /** An API key or a JWT, or a function that returns one; it is called again when a pod refuses the last. */
  token?: Token;
  /** The generator, or the name of a model. */
  model?: string;
  /** More headers for each request. */
  headers?: Given<Record<string, string>>;
  /** More fields of the generator's input. */
  body?: Given<object>;
  /** The messages that the page was loaded with. Then an answer that is complete there is not requested again. */
  messages?: readonly SavedMessage[];
  /** Send only the last message: the pods have the others. Needs the scope `read`, too. */
  lastMessageOnly?: boolean;
  /** Whether `stop()` of the chat stops the generator; by default, true. AI SDK 7 also calls it when a component goes. */
  stopOnAbort?: boolean;
  /** Called when no pod took a stop: the generator continues. */
  onStopFailed?: (error: BatonError) => void;
  /** Give up when no pod has answered for this long, while the page is visible and has a network. */
  patienceMilliseconds?: number;
  /** In place of the global `fetch`, for instance `expo/fetch`. */
  fetch?: Fetch;
}

/** What this module reads of a message. */
export interface SavedMessage {
  id?: string;
  role?: string;
  metadata?: unknown;
  parts?: readonly object[];
}

/** What the SDK gives to a transport. */
export interface ChatRequest {
  chatId: string;
  abortSignal?: AbortSignal | undefined;
  headers?: Record<string, string> | Headers | undefined;
  body?: object | undefined;
  metadata?: unknown;
}

export interface SendRequest extends ChatRequest {
  trigger: "submit-message" | "regenerate-message";
  messageId?: string | undefined;
  messages: readonly SavedMessage[];
}

// Each version of the SDK has another type for chunks; this one fits all of them.
type Chunks = ReadableStream<any>;

/** A `ChatTransport` of AI SDK 5, 6 and 7. */
export interface BatonChatTransport {
  /** A resumed answer comes whole. AI SDK 7 then replaces what the page has of it. */
  readonly resumeStreamIsReplay: true;
  sendMessages(request: SendRequest): Promise<Chunks>;
  reconnectToStream(request: ChatRequest): Promise<Chunks | null>;
  /** Stop the generator of a chat's newest answer. Does nothing if none is running. */
  stop(chatId: string): Promise<void>;
}

/**
 * Return a transport for `useChat`. An answer survives lost connections, deploys, killed pods and a page that sleeps: the
 * page sees a pause. With `resume: true`, a page that is loaded gets the whole newest answer.
 *
 * `chat.error` is a `BatonError`.
 */
export function batonChatTransport(options: ChatTransportOptions = {}): BatonChatTransport {
  return new Transport(options);
}

/** Remove incomplete tool calls from saved messages: AI SDK 5 and 6 would show their answer twice when it is resumed. */
export function resumable<M extends SavedMessage>(messages: readonly M[]): M[] {
  return messages.map((message) => (hasEnded(message) ? message : { ...message, parts: message.parts?.filter(isComplete) }));
}

class Transport implements BatonChatTransport {
  readonly resumeStreamIsReplay = true;
  readonly #options: ChatTransportOptions;
  readonly #door: Door;
  readonly #sent = new Set<string>(); // chats that have a newer message than the page was loaded with
  readonly #resumes = new Map<string, object>(); // the newest request for a chat's answer

  constructor(options: ChatTransportOptions) {
    this.#options = options;
    const { url, token } = options;
    this.#door = new Door({ url, token, headers: () => given(options.headers, {}), fetch: fetchOf(options.fetch) });
  }

  async sendMessages(request: SendRequest): Promise<Chunks> {
    const { abortSignal: signal, chatId } = request;
    const headers = { ...plain(request.headers), "idempotency-key": randomId() };
    const body = JSON.stringify(await this.#content(request));
    if (signal?.aborted) throw reasonOf(signal);
    this.#sent.add(chatId);
    const [pauses, closing] = [this.#pauses(), new AbortController()];
    const sending = this.#door.open({ method: "POST", path: "", headers, body }, pauses, closing.signal);
    const connection = await orAborted(sending, signal, async () => {
      // The request may have created the answer, whose name is needed to stop it.
      const late = await sending.catch(() => null);
      closing.abort();
      if (late) this.#aborted(late.run);
    });
    if (connection === null) throw new BatonError("unexpected_response", "The response is not a pod's. Is the address right?");
    const answer = { door: this.#door, connection, replay: false, pauses, closing };
    return this.#followed(answer, signal, () => this.#aborted(connection.run));
  }

  async reconnectToStream(request: ChatRequest): Promise<Chunks | null> {
    const { abortSignal: signal, chatId } = request;
    this.#resumes.set(chatId, request);
    const [pauses, closing] = [this.#pauses(), new AbortController()];
    // The SDK aborts a request for an answer also because it makes another one, which follows at once.
    const aborted = (id: string): void => {
      setTimeout(() => this.#resumes.get(chatId) === request && this.#aborted(id), 0);
    };
    const opening = this.#opened(request, pauses, closing.signal);
    const connection = await orAborted(opening, signal, () => {
      closing.abort();
      aborted(encodeURIComponent(chatId));
    });
    if (connection === null) return null;
    const answer = { door: this.#door, connection, replay: true, pauses, closing };
    return this.#followed(answer, signal, () => aborted(connection.run));
  }

  async stop(chatId: string): Promise<void> {
    await this.#stop(encodeURIComponent(chatId));
  }

  /** Ask for a chat's newest answer; return null if there is none that the page lacks. */
  async #opened({ chatId, headers }: ChatRequest, pauses: Pauses, signal: AbortSignal): Promise<Connection | null> {
    // Without an index, pods leave out an answer that has ended.
    const last = this.#sent.has(chatId) ? undefined : this.#options.messages?.at(-1);
    const path = `/${encodeURIComponent(chatId)}/stream${last && hasEnded(last) ? "" : "?startIndex=0"}`;
    try {
      return await this.#door.open({ method: "GET", path, headers: plain(headers) }, pauses, signal);
    } catch (error) {
      if (error instanceof BatonError && WITHOUT_ANSWER.has(error.status ?? 0)) return null;
      throw error;
    }
  }

  /** Return the chunks of an answer. If the page stops it, `aborted` is called. */
  #followed(answer: Omit<Answer, "over">, signal: AbortSignal | undefined, aborted: () => void): ReadableStream<Chunk> {
    const stopped = (): void => {
      answer.closing.abort(signal && reasonOf(signal));
      aborted();
    };
    if (signal?.aborted) stopped();
    else signal?.addEventListener("abort", stopped, { once: true });
    return streamOf({ ...answer, over: () => signal?.removeEventListener("abort", stopped) });
  }

  #aborted(id: string): void {
    if (this.#options.stopOnAbort === false) return;
    this.#stop(id).catch((error: BatonError) => this.#options.onStopFailed?.(error));
  }

  async #stop(id: string): Promise<void> {
    const [, deadline] = await this.#door.ask({ method: "POST", path: `/${id}/stop` }, this.#pauses());
    deadline.end();
  }

  async #content({ chatId: id, messages, trigger, messageId, body }: SendRequest): Promise<object> {
    const extra = { model: this.#options.model, ...(await given(this.#options.body, {})), ...body };
    if (!this.#options.lastMessageOnly) return { ...extra, id, messages, trigger, messageId };
    if (trigger === "regenerate-message") return { ...extra, id, trigger, messageId };
    return { ...extra, id, message: messages.at(-1), previousMessageId: messages.at(-2)?.id };
  }

  #pauses(): Pauses {
    return new Pauses(this.#options.patienceMilliseconds ?? PATIENCE_MILLISECONDS);
  }
}

const hasEnded = ({ role, metadata }: SavedMessage): boolean =>
  role === "assistant" && Boolean((metadata as { status?: unknown } | null | undefined)?.status);

/** Whether a part is none that the SDK would continue. */
function isComplete(part: { state?: unknown; providerExecuted?: unknown }): boolean {
  return part.state !== "input-streaming" && !(part.state === "input-available" && part.providerExecuted);
}

/** Wait for `work`. If the signal fires before, throw its reason, after a call of `abandoned`. */
function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined, abandoned: () => unknown): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      reject(reasonOf(signal));
      void abandoned();
    };
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

async function given<T>(value: Given<T> | undefined, otherwise: T): Promise<T> {
  return value === undefined ? otherwise : typeof value === "function" ? await (value as () => T | Promise<T>)() : value;
}

function plain(headers: Record<string, string> | Headers | undefined): Record<string, string> {
  return typeof headers?.forEach === "function" ? Object.fromEntries(headers as Headers) : { ...(headers as Record<string, string>) };
}
