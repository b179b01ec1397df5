// `baton-stream`: follow a stream from a browser, Node or React Native, and send inputs to it.

export { BatonError, type ErrorCode, type LocalCode, type Problem } from "./errors.js";
export type { DoneEvent, Event, SnapshotEvent, Stream } from "./events.js";
export type { Fetch, Token } from "./fetch.js";
export { type FollowOptions, type Following, follow } from "./follow.js";
export { type SendInputOptions, sendInput } from "./input.js";
