// What events add up to. The expected values are those of the pods' snapshots.
import assert from "node:assert/strict";
import { test } from "node:test";
import { AnswerFold } from "../dist/esm/answer.js";

const call = (index, delta, more = {}) => ({ type: "tool_call", index, arguments_delta: delta, ...more });

function fold(...events) {
  const answer = new AnswerFold();
  for (const event of events) answer.take(event);
  return answer.answer;
}

test("calls of several steps use the indexes again, and results find their call", () => {
  const { tools, status } = fold(
    call(0, '{"a":', { id: "one", name: "look" }),
    call(1, "{}", { id: "two", name: "find", run_by: "client" }),
    call(0, "1}"),
    { type: "tool_result", id: "one", result: [1] },
    call(0, "[]", { id: "three", name: "look" }),
    { type: "tool_approval", id: "three" },
    { type: "tool_result", id: "two", content: "x" },
    { type: "tool_result", id: "nobody's", result: 1 },
  );
  assert.equal(status, "streaming");
  assert.deepEqual(tools, [
    { id: "one", name: "look", arguments: '{"a":1}', needsApproval: false, result: [1] },
    { id: "two", name: "find", arguments: "{}", runBy: "client", needsApproval: false, result: { content: "x" } },
    { id: "three", name: "look", arguments: "[]", needsApproval: true },
  ]);
});

test("a call without an id has one by its position, and its id may come later", () => {
  assert.deepEqual(fold(call(0, "1"), call(1, "2"), call(1, "3", { id: "late" })).tools.map(({ id, arguments: json }) => [id, json]), [
    ["call_0", "1"],
    ["late", "23"],
  ]);
});

test("a snapshot replaces everything, and a call that it has half of continues", () => {
  const calls = [
    { id: "one", name: "look", arguments: "{}" },
    { id: "two", name: "look", arguments: '{"b":' },
  ];
  const snapshot = { type: "snapshot", text: "So ", reasoning: "Hm", tool_calls: calls, tool_results: [{ id: "one", result: 1 }] };
  const answer = fold({ type: "text", delta: "gone" }, snapshot, call(0, "2"), call(0, "}"), { type: "text", delta: "far" });
  assert.deepEqual([answer.text, answer.reasoning], ["So far", "Hm"]);
  assert.deepEqual(answer.tools.map(({ arguments: json, result }) => [json, result]), [["{}", 1], ['{"b":2}', undefined]]);
  assert.deepEqual(fold(snapshot, call(0, "3", { id: "two" }), call(0, "{}", { id: "three" })).tools.map(({ arguments: json }) => json), [
    "{}",
    '{"b":3',
    "{}",
  ]);
});

test("a snapshot of a stream that waits says so, and a reset empties the answer", () => {
  const waits = { type: "snapshot", text: "May I?", tool_calls: [{ id: "c", name: "pay", arguments: "{}" }], tool_approvals: [{ id: "c" }], waiting: { for: 1, until: null } };
  const answer = fold(waits);
  assert.deepEqual([answer.status, answer.waiting, answer.tools[0].needsApproval], ["waiting", { for: 1, until: null }, true]);
  const again = fold(waits, { type: "reset", reason: "worker_lost" });
  assert.deepEqual([again.status, again.text, again.tools, again.waiting], ["streaming", "", [], null]);
});

test("what has not changed is the same object, so that a page renders only what has", () => {
  const answer = new AnswerFold();
  answer.take(call(0, "1", { id: "one" }));
  answer.take(call(1, "2", { id: "two" }));
  const before = answer.answer;
  assert.equal(answer.answer, before);
  answer.take({ type: "text", delta: "x" });
  assert.equal(answer.answer.tools, before.tools);
  answer.take({ type: "tool_result", id: "two", result: 1 });
  assert.notEqual(answer.answer.tools, before.tools);
  assert.equal(answer.answer.tools[0], before.tools[0]);
  assert.equal(before.tools[1].result, undefined);
});
