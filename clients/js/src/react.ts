"use client";
// `baton-stream/react`: follow a stream from a component of React 18 or 19.

import { useEffect, useMemo, useSyncExternalStore } from "react";
import type { StreamAddress } from "./addresses.js";
import { type AnswerOptions, AnswerStore, type ShownAnswer } from "./answer-store.js";
import type { StreamState } from "./streams.js";

export type { StreamAddress } from "./addresses.js";
export type { Answer, AnswerStatus, ToolUse } from "./answer.js";
export type { AnswerOptions as UseBatonOptions } from "./answer-store.js";

/** The answer so far, and what a page can do with its stream. The functions stay the same while the stream does. */
export interface BatonAnswer extends ShownAnswer {
  /** Ask the generator to stop. The token needs the scope `cancel`. */
  stop: () => Promise<StreamState>;
  /** Send an input, and return its number. The token needs the scope `input`. */
  send: (data: unknown, options?: { idempotencyKey?: string }) => Promise<number>;
}

/**
 * Follow a stream while the component is mounted, and return its answer. A page that is loaded again passes the same
 * address, and gets the answer so far and what follows. Without an address, it waits for one.
 *
 * The component renders at most once for each frame, however many events arrive. It continues on any pod when a
 * connection is lost, and tries until one answers; `connected` says that one does.
 */
export function useBaton(stream: StreamAddress | null | undefined, options: AnswerOptions = {}): BatonAnswer {
  // The address may be another object in each render.
  const name = !stream ? "" : typeof stream === "object" && "id" in stream ? `${stream.url} ${stream.id}` : String(stream);
  const store = useMemo(() => new AnswerStore(stream || null), [name]);
  // Before the store's own effect, which connects.
  useEffect(() => {
    store.options = options;
  });
  const shown = useSyncExternalStore(store.subscribe, store.shown, () => store.initial);
  return useMemo(() => ({ ...shown, stop: store.stop, send: store.send }), [shown, store]);
}
