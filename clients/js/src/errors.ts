// The one error class of this package, and how a response that refuses becomes one.

import type { components } from "./openapi.js";
import type { FetchResponse } from "./fetch.js";

/** What a pod answers to a request that it refuses (RFC 9457). */
export type Problem = components["schemas"]["Problem"];

/** Why this package gives up, beside the codes of the pods. */
export type LocalCode =
  | "unreachable" // no pod has answered for too long
  | "unexpected_response" // not from a pod, or not of the right kind
  | "invalid_url"
  | "unknown_format" // `produce` does not recognize the source
  | "producer_fenced" // a newer producer writes the stream
  | "producer_gap"; // the server lacks events that it accepted before

/** A code of a problem, of the end of a stream, or of this package. Later releases may add codes. */
export type ErrorCode = Problem["code"] | LocalCode | (string & {});

export interface ErrorDetails {
  status?: number | undefined;
  retryable?: boolean;
  retryAfterSeconds?: number | undefined;
  cause?: unknown;
}

/** A request that failed. `retryable`: the same request may succeed later. `status` is missing if no response came. */
export class BatonError extends Error {
  override readonly name = "BatonError";
  readonly code: ErrorCode;
  readonly status: number | undefined;
  readonly retryable: boolean;
  readonly retryAfterSeconds: number | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.status = details.status;
    this.retryable = details.retryable ?? false;
    this.retryAfterSeconds = details.retryAfterSeconds;
  }
}

const PASSING = new Set([408, 425, 429]);

/** Whether a request with this status may succeed later. */
export const isTemporary = (status: number): boolean => status >= 500 ? status !== 501 && status !== 505 : PASSING.has(status);

/** Return the error for a response that refuses. Its body may be a proxy's, and no JSON. */
export async function refusal(response: FetchResponse): Promise<BatonError> {
  const problem = await readProblem(response);
  const sentence = problem.detail ?? problem.title ?? `The response has the status ${response.status}.`;
  return new BatonError(problem.code ?? "unexpected_response", sentence, {
    status: response.status,
    retryable: isTemporary(response.status),
    retryAfterSeconds: retryAfter(response.headers.get("retry-after")),
  });
}

async function readProblem(response: FetchResponse): Promise<Partial<Problem>> {
  try {
    const found: unknown = JSON.parse(await response.text());
    return typeof found === "object" && found !== null ? (found as Partial<Problem>) : {};
  } catch {
    return {};
  }
}

/** Return a `Retry-After` in seconds, whether it is a number or a date. */
export function retryAfter(value: string | null): number | undefined {
  if (!value) return undefined;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : undefined;
}
