// What viewers see of an error: a code and a sentence. Messages of exceptions stay out of it, since they may hold secrets.

import { BatonError } from "./errors.js";
import { CUT_OFF, fields } from "./formats/format.js";

export interface Failure {
  code: string;
  message: string;
}

/** Describe an error of a source: by the HTTP status that SDKs keep in it, or else in general. */
export function describe(error: unknown): Failure {
  if (typeof error === "string" && error) return { code: "provider_error", message: error }; // made for viewers
  if (error instanceof BatonError) return { code: String(error.code), message: error.message };
  const { statusCode, status = statusCode, name, cause, lastError } = fields(error);
  if (typeof status === "number") return byStatus(status);
  if (lastError ?? cause) return describe(lastError ?? cause);
  if (name === "AbortError") return { code: "aborted", message: "The answer was stopped before it was complete." };
  return { code: "producer_error", message: "The answer could not be finished." };
}

function byStatus(status: number): Failure {
  if (status < 400) return CUT_OFF; // the AI SDK keeps the status of a response that broke off later
  if (status === 429) return { code: "provider_rate_limited", message: "The model provider is limiting requests." };
  if (status === 401 || status === 403) {
    return { code: "provider_auth_failed", message: "The model provider refused the credentials, or this use of them." };
  }
  if (status === 408) return { code: "provider_timeout", message: "The model provider did not answer in time." };
  if (status >= 500) return { code: "provider_error", message: `The model provider failed with status ${status}.` };
  return { code: "provider_invalid_request", message: `The model provider did not accept the request (status ${status}).` };
}
