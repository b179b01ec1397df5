// Follows a stream where responses cannot be read as they arrive: by asking for the answer so far, again and again.

import { streamUrl } from "./addresses.js";
import type { DoneEvent, Event, SnapshotEvent, Stream } from "./events.js";

// A token that sees only the answer gets no more than its text.
type Seen = Partial<Stream> & Pick<Stream, "status">;
type Call = Stream["tool_calls"][number];

const ENDED = new Set(["completed", "failed", "cancelled"]);

/** Return the address of a stream's state from that of its events, or null if it is not one of Baton's. */
export function stateUrl(eventsUrl: URL, waitSeconds: number): URL | null {
  const url = streamUrl(eventsUrl);
  url?.searchParams.set("wait", String(waitSeconds));
  return url;
}

/** Turns the answer so far, as it grows, into the events that a follower would have received. `custom` events are missing. */
export class AnswerProgress {
  #text = "";
  #reasoning = "";
  #calls: Call[] = [];
  #results = 0;
  #approvals = 0;
  #waits: string | null = null; // since when
  #whole: boolean;

  /** `whole`: begin with a snapshot, because the caller asked for one, or has events that cannot be known here. */
  constructor(whole: boolean) {
    this.#whole = whole;
  }

  /** Return the events since the last call. */
  take(stream: Seen): Event[] {
    const wait = this.#wait(stream);
    const events: Event[] = wait.filter(({ type }) => type === "resumed");
    if (this.#whole && stream.last_event_id) events.push(snapshot(stream));
    else if (!this.#whole) events.push(...this.#changes(stream));
    if (events.length || !this.#whole) this.#remember(stream);
    events.push(...wait.filter(({ type }) => type === "waiting"));
    if (ENDED.has(stream.status)) events.push(done(stream));
    return events;
  }

  /** Return the event of a wait that has begun or ended. */
  #wait({ status, waiting, run, interruption }: Seen): Event[] {
    const [before, since] = [this.#waits, waiting?.since ?? null];
    if (status === "queued") return []; // it has waited, and no worker has it yet
    this.#waits = since;
    if (waiting && since !== before) return [{ type: "waiting", for: waiting.for ?? null, until: waiting.until }];
    return before !== null && status === "running" ? [{ type: "resumed", run: run ?? 0, reason: interruption ?? "input" }] : [];
  }

  #changes(stream: Seen): Event[] {
    if (this.#startedAgain(stream)) {
      this.#remember({ status: stream.status });
      return [{ type: "reset", reason: stream.interruption ?? "worker_lost" }, ...this.#changes(stream)];
    }
    const reasoning = (stream.reasoning ?? "").slice(this.#reasoning.length);
    const text = (stream.text ?? "").slice(this.#text.length);
    return [
      ...(reasoning ? [{ type: "reasoning" as const, delta: reasoning }] : []),
      ...(text ? [{ type: "text" as const, delta: text }] : []),
      ...(stream.tool_calls ?? []).flatMap((call, index) => callChange(call, index, this.#calls[index])),
      ...(stream.tool_results ?? []).slice(this.#results).map((result) => ({ ...result, type: "tool_result" }) as Event),
      ...(stream.tool_approvals ?? []).slice(this.#approvals).map((asked) => ({ ...asked, type: "tool_approval" }) as Event),
    ];
  }

  #startedAgain({ text = "", reasoning = "", tool_calls: calls = [], tool_results: results = [] }: Seen): boolean {
    const grew = text.startsWith(this.#text) && reasoning.startsWith(this.#reasoning) && results.length >= this.#results;
    return !grew || !this.#calls.every(({ id, arguments: before }, index) => {
      const now = calls[index];
      return now !== undefined && now.id === id && now.arguments.startsWith(before);
    });
  }

  #remember(stream: Seen): void {
    this.#whole = false;
    this.#text = stream.text ?? "";
    this.#reasoning = stream.reasoning ?? "";
    this.#calls = stream.tool_calls ?? [];
    this.#results = stream.tool_results?.length ?? 0;
    this.#approvals = stream.tool_approvals?.length ?? 0;
  }
}

function callChange(call: Call, index: number, before: Call | undefined): Event[] {
  const delta = call.arguments.slice(before?.arguments.length ?? 0);
  if (before) return delta ? [{ type: "tool_call", index, arguments_delta: delta }] : [];
  const side = call.run_by === undefined ? {} : { run_by: call.run_by as "client" | "generator" };
  return [{ type: "tool_call", index, id: call.id, name: call.name, arguments_delta: delta, ...side }];
}

function snapshot(stream: Seen): SnapshotEvent {
  const { text = "", reasoning, tool_calls, tool_results, tool_approvals, usage } = stream;
  const known = { reasoning, tool_calls, tool_results, tool_approvals, usage: usage ?? undefined };
  const present = Object.entries(known).filter(([, value]) => value !== undefined);
  return { type: "snapshot", text, ...Object.fromEntries(present) };
}

function done(stream: Seen): DoneEvent {
  const { usage, usage_by_attempt: attempts, timings, error } = stream;
  return {
    type: "done",
    status: stream.status as DoneEvent["status"],
    finish_reason: stream.finish_reason ?? null,
    ...(usage === undefined ? {} : { usage }),
    ...(attempts ? { usage_by_attempt: attempts } : {}),
    ...(timings ? { timings } : {}),
    ...(error ? { error } : {}),
  };
}
