// Follows a stream's native events through any number of connections, each after the last event that came.
//
// It works like EventSource, and also sends a key and reports which pod answers.

const SILENCE_MILLISECONDS = 45_000; // pods send a comment every 15 s
const LONGEST_PAUSE_MILLISECONDS = 5_000;

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
  const place = { cursor: 0, over: false, retry: null, failures: 0 };
  while (!place.over && !signal.aborted) {
    let reason;
    try {
      await connect(url, place, { key, signal, snapshot, onConnected, onEvent });
      reason = "The pod closed the connection.";
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
      reason = error instanceof Refused ? error.message : "The connection broke.";
      place.retry = null;
    }
    if (place.over || signal.aborted) return;
    onDropped({ reason, cursor: place.cursor });
    await pause(place, signal);
  }
}

async function connect(url, place, { key, signal, snapshot, onConnected, onEvent }) {
  const attempt = new AbortController();
  const stop = () => attempt.abort();
  signal.addEventListener("abort", stop);
  try {
    const headers = { Accept: "text/event-stream", ...bearer(key) };
    if (place.cursor) headers["Last-Event-ID"] = String(place.cursor);
    const address = new URL(url, document.baseURI);
    if (snapshot && !place.cursor) address.searchParams.set("snapshot", "true");
    const response = await fetch(address, { headers, signal: attempt.signal, cache: "no-store" });
    if (response.status === 204) {
      place.over = true;
      return;
    }
    if (!response.ok) throw await refusal(response);
    onConnected({ pod: response.headers.get("X-Baton-Pod") ?? "", cursor: place.cursor });
    await read(response.body, attempt, (block) => take(block, place, onEvent));
  } finally {
    signal.removeEventListener("abort", stop);
    attempt.abort();
  }
}

async function read(body, attempt, onBlock) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const timer = setTimeout(() => attempt.abort(), SILENCE_MILLISECONDS);
    const { done, value } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) onBlock(block);
  }
}

function take(block, place, onEvent) {
  let data = null;
  for (const line of block.split("\n")) {
    const [, name, value] = /^([a-z]*): ?([^]*)$/.exec(line) ?? [];
    if (name === "id") place.cursor = Number(value);
    else if (name === "retry") place.retry = Number(value);
    else if (name === "data") data = value;
  }
  if (data === null) return;
  place.failures = 0;
  const event = JSON.parse(data);
  if (event.type === "done" || event.type === "error") place.over = true;
  onEvent(place.cursor, event);
}

function pause(place, signal) {
  const longest = Math.min(LONGEST_PAUSE_MILLISECONDS, 200 * 2 ** place.failures++);
  const milliseconds = place.retry ?? longest * (0.5 + Math.random() / 2);
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
