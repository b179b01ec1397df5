// The types of events and streams, from the OpenAPI document of the pods.

import type { components } from "./openapi.js";

type Schemas = components["schemas"];

/** An event of a stream, as `follow` yields it. Later releases may add types: have a `default`. */
export type Event = Exclude<Schemas["Event"], { type: "error" }>;

/** The last event of a stream: how it ended. */
export type DoneEvent = Extract<Event, { type: "done" }>;

/** The answer so far. It replaces all events before it. */
export type SnapshotEvent = Extract<Event, { type: "snapshot" }>;

/** A stream, its state, and its answer so far: the response of `GET /v1/streams/{id}`. */
export type Stream = Schemas["StreamWithAnswer"];

/** What a producer may write, beside plain strings, which are text. */
export type Message =
  | Extract<Event, { type: "text" | "reasoning" | "tool_call" | "tool_result" | "tool_approval" | "custom" }>
  | { type: "usage"; [count: string]: string | number | null | undefined }
  | { type: "finish"; finish_reason?: string }
  | { type: "error"; code: string; message: string };
