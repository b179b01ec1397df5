// Pods and workers in words: the name, shape and color of each state.

import { span } from "./dom.js";

// Whether hints should arrive, and do not. A pod that polls by its settings expects none.
export const lacksHints = (pod) => pod.listener !== "listening" && pod.listener !== "polling";

// `state` is one of those in baton.css: "well", "warned", "failed".
export function podState(pod) {
  if (!pod.alive) return { state: "failed", label: `no sign of life for ${span(pod.silent_seconds)}` };
  if (pod.state !== "ready") return { state: "warned", label: pod.state };
  if (lacksHints(pod)) return { state: "warned", label: "ready, polling only" };
  return { state: "well", label: "ready" };
}

export function workerState(worker) {
  if (!worker.alive) return { state: "failed", label: `no sign of life for ${span(worker.silent_seconds)}` };
  if (worker.running >= worker.concurrency) return { state: "warned", label: "full" };
  return { state: "well", label: "ready" };
}

// A pod that was killed and started again under its name is one pod.
export function withoutReplaced(pods) {
  const living = new Set(pods.filter((pod) => pod.alive).map((pod) => pod.name));
  return pods.filter((pod) => pod.alive || !living.has(pod.name));
}
