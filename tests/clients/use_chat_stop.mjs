// useChat: stops a stream on the server, and shows an error that the server tells.
import { loaded, mount, say, textOf } from "./react.mjs";
import { useAnswers } from "./chat.mjs";

const [model, failing] = process.argv.slice(2);
const onFinish = ({ isError, isAbort, finishReason }) => say("finish", { isError, isAbort, finishReason });
const page = mount(() => useAnswers({ id: "42", model, onFinish }));

await loaded();
await page.until((chat) => chat.status === "ready");
page.current.sendMessage({ text: "Hello" });
await page.until((chat) => textOf(chat.messages.at(-1)).includes("word299 "));
say("asked", { status: (await page.current.stop()).status });
const stopped = await page.until((chat) => chat.status !== "streaming");
say("stopped", { status: stopped.status, parts: stopped.messages.at(-1).parts });

page.current.sendMessage({ text: "And now?" }, { body: { model: failing } });
const failed = await page.until((chat) => chat.status === "error");
say("failed", { error: failed.error.message });

page.current.sendMessage({ text: "And now?" }, { body: { model: "nobody" } });
const refused = await page.until((chat) => chat.error && chat.error !== failed.error);
say("refused", { error: refused.error.message });
page.unmount();
process.exit(0);
