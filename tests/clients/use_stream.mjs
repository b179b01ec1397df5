// A page with `useStream` that is reloaded in the middle of an answer: `node use_stream.mjs <thread>`. With the id
// of a run, it is only loaded, and follows that run to its end.
import { mount, say } from "./react.mjs";
import { useThread } from "./use_thread.mjs";

const [threadId, runId] = process.argv.slice(2);
const page = () => mount(() => useThread(threadId));
const textOf = (shown) => shown.messages.at(-1)?.content ?? "";

if (runId) {
  window.sessionStorage.setItem(`lg:stream:${threadId}`, runId);
  const joined = page();
  await joined.until((shown) => textOf(shown) !== "");
  say("seen", { text: textOf(joined.current) });
  const shown = await joined.until((shown) => !shown.isLoading);
  say("end", { texts: shown.messages.map((message) => message.content), error: shown.error ?? null });
  process.exit(0);
}

const before = page();
await before.until((shown) => !shown.isThreadLoading);
before.current.submit({ messages: [{ type: "human", content: "go" }] });
await before.until((shown) => shown.messages.length === 2 && textOf(shown).includes("word99 "));
say("seen");
before.unmount();

const after = page();
await after.until((shown) => textOf(shown).includes("word199 "));
say("rejoined");
const shown = await after.until((shown) => !shown.isLoading && textOf(shown).includes("word599 "));
say("end", { types: shown.messages.map((message) => message.type), text: textOf(shown), error: shown.error ?? null });
process.exit(0);
