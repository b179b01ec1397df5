// Follows a stream's native events for a page, with its key, and reports which pod answers. The package does the rest.

import { BatonError, follow as eventsOf } from "./baton-stream.js";

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail ?? problem.title ?? "The request was refused.");
    this.code = problem.code;
    this.status = problem.status;
  }
}

export const bearer = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// The problem that a refusal holds. A proxy's may be no JSON.
export async function refusal(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    problem = { detail: `The answer was ${response.status} ${response.statusText}.` };
  }
  return new Refused({ ...problem, status: response.status });
}

// `onConnected({pod, cursor})`, `onEvent(seq, event)` and `onDropped({reason, cursor})` report what happens. Returns at the
// stream's end, or when `signal` aborts. Throws Refused if another try would change nothing.
export async function follow(url, { key, signal, snapshot = false, onConnected, onEvent, onDropped }) {
  const events = eventsOf(new URL(url, document.baseURI), {
    token: key,
    signal,
    snapshot,
    patienceMilliseconds: Infinity, // a page shows that it waits, and a person leaves it
    onConnect: ({ pod, lastEventId }) => onConnected({ pod, cursor: lastEventId }),
    onDisconnect: ({ error, lastEventId }) => onDropped({ reason: error.message, cursor: lastEventId }),
  });
  try {
    for await (const event of events) onEvent(events.lastEventId, event);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof BatonError && error.status)) throw error;
    throw new Refused({ code: error.code, status: error.status, detail: error.message });
  }
}
