import assert from "node:assert/strict";
import { test } from "node:test";
import { EventStreamParser } from "../dist/esm/event-stream.js";

const all = (...chunks) => {
  const parser = new EventStreamParser();
  return chunks.flatMap((chunk) => parser.push(chunk));
};

const LINES = [": comment", "retry: 20", "id: 7", "event: more", "data: one", "data:two", "", "data", "", "id: a\0b", "unknown: x", "data: three", "", "data: cut"];
const EXPECTED = [
  { id: "7", type: "more", data: "one\ntwo" },
  { id: "7", type: "message", data: "" },
  { id: "7", type: "message", data: "three" },
];

for (const [name, end] of [["LF", "\n"], ["CR", "\r"], ["CRLF", "\r\n"]]) {
  test(`lines that end with ${name} are read in any division`, () => {
    const text = "\uFEFF" + LINES.join(end);
    assert.deepEqual(all(text), EXPECTED);
    assert.deepEqual(all(...text), EXPECTED);
    for (let at = 0; at <= text.length; at++) assert.deepEqual(all(text.slice(0, at), text.slice(at)), EXPECTED);
  });
}

test("an event is dispatched at a carriage return, whatever follows", () => {
  assert.equal(all("data: x\r", "\r").length, 1);
  assert.deepEqual(all("data: x\r\n\r", "\ndata: y\r\n\r\n").map(({ data }) => data), ["x", "y"]);
});

test("only the first byte order mark is dropped", () => {
  assert.deepEqual(all("\uFEFFdata: \uFEFF\n\n").map(({ data }) => data), ["\uFEFF"]);
  assert.deepEqual(all("\uFEFF\uFEFFdata: x\n\n"), []);
});

test("an id of digits, an empty id, and a retry that is no number", () => {
  assert.deepEqual(all("id: 3\ndata: x\n\nid\ndata: y\n\n").map(({ id }) => id), ["3", ""]);
  const parser = new EventStreamParser();
  parser.push("retry: 10\nretry: 1e3\nretry:\nretry: -5\n\n");
  assert.equal(parser.retryMilliseconds, 10);
});
