// Pauses between attempts.

const FIRST_MILLISECONDS = 200;
const LONGEST_MILLISECONDS = 5_000;
// The longest that a server can ask for. A timer of more than 24 days would fire at once.
const LONGEST_ASKED_MILLISECONDS = 600_000;

/** Exponential backoff with jitter, and how long nothing has succeeded. */
export class Backoff {
  readonly #patienceMilliseconds: number;
  #failures = 0;
  #since: number | null = null; // of the first failure after something was heard

  constructor(patienceMilliseconds: number) {
    this.#patienceMilliseconds = patienceMilliseconds;
  }

  /** Start again with the shortest pause, after a success. */
  reset(): void {
    this.#failures = 0;
    this.#since = null;
  }

  /** Have patience again, but keep the length of the pauses: there was an answer, but no success. */
  heard(): void {
    this.#since = null;
  }

  /** Count a failure; return the milliseconds to wait after it, or null when patience is over. */
  next(leastMilliseconds = 0): number | null {
    this.#since ??= Date.now();
    if (Date.now() - this.#since > this.#patienceMilliseconds) return null;
    const longest = Math.min(LONGEST_MILLISECONDS, FIRST_MILLISECONDS * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 30);
    return Math.max(Math.min(leastMilliseconds, LONGEST_ASKED_MILLISECONDS), longest * (0.5 + Math.random() / 2));
  }
}

/** Wait; rejects with the signal's reason if it fires before. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal && reasonOf(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Return why a signal fired. React Native's have no reason. */
export const reasonOf = (signal: AbortSignal): unknown => signal.reason ?? Object.assign(new Error("The request was aborted."), { name: "AbortError" });
