// The hook where there is no page: as a framework renders it on a server. Nothing here defines `window`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { react } from "./react-bundle.mjs";

for (const version of [18, 19]) {
  const { React, useBaton, required, server } = await react(version);
  const render = (hook, ...given) => {
    const Probe = () => JSON.stringify(hook(...given));
    return server().renderToString(React.createElement(Probe)).replaceAll("&quot;", '"');
  };

  test(`React ${version} renders it on a server, and requests nothing`, () => {
    globalThis.fetch = () => assert.fail("a request");
    const empty = { text: "", reasoning: "", tools: [], waiting: null, error: null, finishReason: null };
    const beginning = { ...empty, status: "connecting", connected: false };
    // A relative address means nothing on a server.
    assert.deepEqual(JSON.parse(render(useBaton, "/v1/streams/x/events", { token: "t" })), beginning);
    assert.deepEqual(JSON.parse(render(required, { url: "/", id: "x" })), beginning);
    for (const none of [null, undefined]) assert.deepEqual(JSON.parse(render(useBaton, none)), { ...beginning, status: "idle" });
  });
}

test("both builds begin with the directive of client components", () => {
  assert.match(readFileSync("dist/esm/react.js", "utf8"), /^"use client";/);
  assert.match(readFileSync("dist/cjs/react.js", "utf8"), /^"use strict";\s*"use client";/);
});
