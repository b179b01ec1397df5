// A page that sleeps: hidden, as on a locked phone, or without a network. It may be frozen for hours in between.

import { Backoff, pause } from "./backoff.js";
import { BatonError } from "./errors.js";

interface Page {
  document?: Pick<EventTarget, "addEventListener" | "removeEventListener"> & { visibilityState?: string };
  navigator?: { onLine?: boolean };
  addEventListener?: EventTarget["addEventListener"];
  removeEventListener?: EventTarget["removeEventListener"];
}

const page = globalThis as Page;

/** Whether nobody looks, or no pod can be reached. Never outside of pages. */
function isAsleep(): boolean {
  return page.document?.visibilityState === "hidden" || page.navigator?.onLine === false;
}

/** Call `wake` each time the page is shown again, or gets a network. Returns a function that ends this. */
export function onWake(wake: () => void): () => void {
  const woken = (): void => {
    if (!isAsleep()) wake();
  };
  page.document?.addEventListener?.("visibilitychange", woken);
  page.addEventListener?.("online", woken);
  return () => {
    page.document?.removeEventListener?.("visibilitychange", woken);
    page.removeEventListener?.("online", woken);
  };
}

/** The pauses between tries. Patience ends only while the page is awake, and waking begins with a try at once. */
export class Pauses {
  readonly #backoff: Backoff;

  constructor(patienceMilliseconds: number) {
    this.#backoff = new Backoff(patienceMilliseconds);
  }

  /** Start again with the shortest pause, after a success. */
  reset(): void {
    this.#backoff.reset();
  }

  /** Have patience again: a pod answered. */
  heard(): void {
    this.#backoff.heard();
  }

  /** Wait after a failure. Throws when patience is over, and the signal's reason when that fires. */
  async after(failure: BatonError, signal?: AbortSignal): Promise<void> {
    const milliseconds = this.#backoff.next((failure.retryAfterSeconds ?? 0) * 1000);
    if (milliseconds === null && !isAsleep()) {
      throw new BatonError("unreachable", "No pod has answered for too long.", { retryable: true, cause: failure });
    }
    await this.#pause(milliseconds, failure.retryAfterSeconds === undefined, signal);
  }

  /** Wait for some time, or, with null, for as long as the page sleeps. */
  async #pause(milliseconds: number | null, isShortened: boolean, signal: AbortSignal | undefined): Promise<void> {
    const over = new AbortController();
    const stop = (): void => over.abort();
    signal?.addEventListener("abort", stop, { once: true });
    const forget = onWake(() => {
      this.#backoff.reset();
      if (isShortened || milliseconds === null) over.abort();
    });
    try {
      await pause(milliseconds ?? LONGEST_TIMER_MILLISECONDS, signal?.aborted ? signal : over.signal);
    } catch (error) {
      if (signal?.aborted) throw error;
    } finally {
      forget();
      signal?.removeEventListener("abort", stop);
    }
  }
}

const LONGEST_TIMER_MILLISECONDS = 2 ** 31 - 1;
