// What a stream's events add up to.

import type { DoneEvent, Event, SnapshotEvent } from "./events.js";

/**
 * `idle`: there is no stream. `connecting`: nothing has come yet. `waiting`: it waits for an input. `completed`, `failed`
 * and `cancelled` are its end. `lost`: it cannot be followed, and what has come so far may be incomplete.
 */
export type AnswerStatus = "idle" | "connecting" | "streaming" | "waiting" | DoneEvent["status"] | "lost";

/** One call of a tool, and its result. */
export interface ToolUse {
  readonly id: string;
  readonly name: string | null;
  /** JSON, which may be incomplete. */
  readonly arguments: string;
  /** Who runs it, if the generator says so before its result. */
  readonly runBy?: string;
  /** The generator asks the user to approve it. */
  readonly needsApproval: boolean;
  /** Missing until it is there. */
  readonly result?: unknown;
}

/** A stream's answer so far. The lists and objects in it are new ones whenever they change. */
export interface Answer {
  readonly status: AnswerStatus;
  readonly text: string;
  readonly reasoning: string;
  readonly tools: readonly ToolUse[];
  /** What it waits for, and until when. */
  readonly waiting: { readonly for: unknown; readonly until: string | null } | null;
  /** Why it failed, or cannot be followed (a `BatonError`). */
  readonly error: { readonly code: string; readonly message: string | null } | null;
  readonly finishReason: string | null;
}

const EMPTY = { text: "", reasoning: "", tools: [], waiting: null, error: null, finishReason: null };

export const IDLE: Answer = { ...EMPTY, status: "idle" };
export const CONNECTING: Answer = { ...EMPTY, status: "connecting" };

type CallEvent = Extract<Event, { type: "tool_call" }>;

/** Adds events up. The cost of an event does not grow with the answer. */
export class AnswerFold {
  #answer: Answer = CONNECTING;
  #tools: ToolUse[] = [];
  #toolsChanged = false;
  #positions = new Map<number, number>(); // of the newest call with each index
  #givenIds = new Set<number>(); // the positions of calls whose id is the generator's
  #afterSnapshot = false; // no call with an index has come since

  /** The answer up to the event that was taken last. */
  get answer(): Answer {
    if (this.#toolsChanged) this.#answer = { ...this.#answer, tools: [...this.#tools] };
    this.#toolsChanged = false;
    return this.#answer;
  }

  take(event: Event): void {
    switch (event.type) {
      case "text":
      case "reasoning":
        return this.#set({ status: "streaming", [event.type]: this.#answer[event.type] + event.delta });
      case "tool_call":
        return this.#call(event);
      case "tool_result":
        return this.#change(event.id, { result: resultOf(event) });
      case "tool_approval":
        return this.#change(event.id, { needsApproval: true });
      case "waiting":
        return this.#set({ status: "waiting", waiting: { for: event.for, until: event.until } });
      case "resumed":
        return this.#set({ status: "streaming", waiting: null });
      case "reset":
        return this.#clear("streaming");
      case "snapshot":
        return this.#snapshot(event);
      case "done":
        return this.#set({ status: event.status, waiting: null, error: event.error ?? null, finishReason: event.finish_reason });
    }
  }

  /** Note that the stream cannot be followed. */
  lose(error: Answer["error"]): void {
    this.#set({ status: "lost", error });
  }

  #set(changes: Partial<Answer>): void {
    this.#answer = { ...this.#answer, ...changes };
  }

  #clear(status: AnswerStatus): void {
    this.#answer = { ...EMPTY, status };
    this.#tools = [];
    this.#toolsChanged = false;
    this.#positions.clear();
    this.#givenIds.clear();
    this.#afterSnapshot = false;
  }

  #snapshot(event: SnapshotEvent): void {
    const { text, reasoning = "", waiting = null, tool_calls: calls = [], tool_results: results = [] } = event;
    this.#clear("streaming");
    for (const call of calls) this.#add(call.id, call.name, call.arguments, call.run_by);
    for (const result of results) this.#change(String(result.id), { result: resultOf(result) });
    for (const { id } of event.tool_approvals ?? []) this.#change(String(id), { needsApproval: true });
    this.#afterSnapshot = true;
    this.#set({ status: waiting ? "waiting" : "streaming", text, reasoning, waiting });
  }

  #call({ index, id, name, arguments_delta: delta, run_by: runBy }: CallEvent): void {
    let position = this.#positions.get(index) ?? this.#unfinished(index, id);
    this.#afterSnapshot = false;
    const tool = position === undefined ? undefined : this.#tools[position];
    // Agents with several steps use the indexes again in each.
    if (!tool || (id && this.#givenIds.has(position!) && id !== tool.id)) {
      position = this.#add(id ?? null, name ?? null, delta ?? "", runBy);
    } else {
      const known = { id: id || tool.id, name: name || tool.name, ...(runBy ? { runBy } : {}) };
      this.#put(position!, { ...tool, ...known, arguments: tool.arguments + (delta ?? "") });
      if (id) this.#givenIds.add(position!);
    }
    this.#positions.set(index, position!);
    this.#set({ status: "streaming" });
  }

  /** Calls in a snapshot have no index: find the one that a call's next chunk continues. */
  #unfinished(index: number, id: string | null | undefined): number | undefined {
    if (!this.#afterSnapshot) return undefined;
    if (id) return this.#positionOf(id);
    const open = this.#tools.flatMap((tool, position) => (isComplete(tool.arguments) ? [] : [position]));
    return open.includes(index) ? index : open.at(-1);
  }

  #add(id: string | null, name: string | null, json: string, runBy: string | null | undefined): number {
    const position = this.#tools.length;
    if (id) this.#givenIds.add(position);
    const side = runBy ? { runBy } : {};
    this.#put(position, { id: id || `call_${position}`, name, arguments: json, ...side, needsApproval: false });
    return position;
  }

  #change(id: string, changes: Partial<ToolUse>): void {
    const position = this.#positionOf(id);
    if (position !== undefined) this.#put(position, { ...this.#tools[position]!, ...changes });
    this.#set({ status: "streaming" });
  }

  #positionOf(id: string): number | undefined {
    const position = this.#tools.map((tool) => tool.id).lastIndexOf(id);
    return position === -1 ? undefined : position;
  }

  #put(position: number, tool: ToolUse): void {
    this.#tools[position] = tool;
    this.#toolsChanged = true;
  }
}

/** Return what a tool returned. A generator may give it under another name than `result`. */
function resultOf({ id: _id, type: _type, ...rest }: Record<string, unknown>): unknown {
  return "result" in rest ? rest.result : rest;
}

function isComplete(json: string): boolean {
  try {
    JSON.parse(json);
    return true;
  } catch {
    return false;
  }
}
