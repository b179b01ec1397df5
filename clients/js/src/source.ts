// A source of items: an async iterable, a ReadableStream, or a promise of one.

import { BatonError } from "./errors.js";

export type Source<T = unknown> = AsyncIterable<T> | ReadableStream<T>;

export interface Items {
  next(): Promise<IteratorResult<unknown, unknown>>;
  /** Ask the source to stop. Errors of that are of no use to anyone. */
  cancel(reason: unknown): void;
}

/** Begin to read a source. */
export function itemsOf(source: Source): Items {
  if (typeof (source as Partial<ReadableStream>)?.getReader === "function") {
    const reader = (source as ReadableStream<unknown>).getReader();
    return {
      next: () => reader.read() as Promise<IteratorResult<unknown, unknown>>,
      cancel: (reason) => void reader.cancel(reason).catch(() => {}),
    };
  }
  if (typeof (source as Partial<AsyncIterable<unknown>>)?.[Symbol.asyncIterator] !== "function") {
    throw new BatonError("unknown_format", "The source is neither an async iterable nor a ReadableStream.");
  }
  const iterator = (source as AsyncIterable<unknown>)[Symbol.asyncIterator]();
  return {
    next: () => iterator.next(),
    cancel: () => void Promise.resolve(iterator.return?.()).catch(() => {}),
  };
}
