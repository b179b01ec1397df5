// One answer as a single stream of chunks, over any number of connections: the SDK never sees one break.

import type { Connection, Door } from "./ai-sdk-door.js";
import { reasonOf } from "./backoff.js";
import { BatonError } from "./errors.js";
import { lost } from "./fetch.js";
import type { Pauses } from "./wake.js";

/** A chunk of the AI SDK's UI message stream. */
export interface Chunk {
  type: string;
  errorText?: string;
}

export interface Answer {
  door: Door;
  connection: Connection;
  /** Its chunks begin with the message that the answer continues. */
  replay: boolean;
  pauses: Pauses;
  /** Ends the reading. */
  closing: AbortController;
  /** Called when nothing more is read. */
  over: () => void;
}

/** Return the chunks of an answer, each once and in order. If the answer fails, the stream ends with a `BatonError`. */
export function streamOf(answer: Answer): ReadableStream<Chunk> {
  const chunks = chunksOf(answer);
  const source = {
    // One chunk for each read: an error would discard chunks that wait in the stream.
    async pull(controller: ReadableStreamDefaultController<Chunk>) {
      const { done, value } = await chunks.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel(reason: unknown) {
      answer.closing.abort(reason);
      await chunks.return().catch(() => {});
    },
  };
  return new ReadableStream<Chunk>(source, { highWaterMark: 0 });
}

async function* chunksOf({ door, connection, replay, pauses, closing, over }: Answer): AsyncGenerator<Chunk, void> {
  const { signal } = closing;
  const address = `/${connection.run}/stream?${replay ? "replay=true&" : ""}startIndex=`;
  let current: Connection | null = connection;
  let received = 0;
  try {
    for (;;) {
      let failure = new BatonError("unreachable", "The pod closed the connection.", { retryable: true });
      try {
        current ??= await door.open({ method: "GET", path: address + received }, pauses, signal);
        if (current === null) throw new BatonError("unexpected_response", "This is no answer of a pod.");
        for await (const data of current.frames()) {
          if (data === "[DONE]") return;
          const chunk = parsed(data);
          received += 1;
          pauses.reset();
          if (chunk.type === "error") throw failureOf(chunk.errorText ?? "");
          yield chunk;
          if (chunk.type === "finish") return;
        }
      } catch (error) {
        if (signal.aborted) throw reasonOf(signal);
        failure = lost(error);
        if (!failure.retryable) throw failure;
      }
      current = null;
      await pauses.after(failure, signal);
    }
  } finally {
    over();
    closing.abort();
  }
}

function parsed(data: string): Chunk {
  try {
    return JSON.parse(data) as Chunk;
  } catch (error) {
    throw new BatonError("unexpected_response", "A chunk is not JSON.", { cause: error });
  }
}

/** Return the error that an answer ended with: a sentence, and its code in parentheses. */
function failureOf(text: string): BatonError {
  const [, sentence, code] = /^(.*) \(([\w.-]+)\)$/s.exec(text) ?? [];
  return new BatonError(code ?? "generator_error", sentence ?? text);
}
