// `baton-stream`: create, follow and cancel streams from a browser, Node or React Native, and send inputs to them.

export type { StreamAddress } from "./addresses.js";
export { BatonError, type ErrorCode, type LocalCode, type Problem } from "./errors.js";
export type { DoneEvent, Event, SnapshotEvent, Stream } from "./events.js";
export type { Fetch, RequestOptions, Token } from "./fetch.js";
export { type FollowOptions, type Following, follow } from "./follow.js";
export {
  type CreatedStream,
  type IdempotentOptions,
  type StreamRequest,
  type StreamState,
  cancel,
  create,
  input,
} from "./streams.js";
