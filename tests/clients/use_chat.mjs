// useChat: loses its pod, and resumes as a reloaded page does.
import { loaded, mount, say, textOf } from "./react.mjs";
import { useAnswers } from "./chat.mjs";

const [model] = process.argv.slice(2);
const id = "chat/1 of Zoë";
const answer = (chat) => chat.messages.findLast((message) => message.role === "assistant");
const onFinish = ({ isError, isAbort, finishReason }) => say("finish", { isError, isAbort, finishReason });
const page = (messages) => mount(() => useAnswers({ id, messages, model, onFinish }));

const before = page();
await loaded();
await before.until((chat) => chat.status === "ready");
before.current.sendMessage({ text: "Hello" });
await before.until((chat) => textOf(answer(chat)).includes("word299 "));
say("half");
const broken = await before.until((chat) => chat.status === "error" || chat.status === "ready");
say("broken", { status: broken.status, error: broken.error?.message, text: textOf(answer(broken)) });
before.unmount();

const after = page(broken.messages);
await after.until((chat) => chat.status === "streaming");
say("resumed");
const whole = await after.until((chat) => chat.status === "ready" || chat.status === "error");
say("whole", { status: whole.status, messages: whole.messages });
after.unmount();

// Once the answer is there, a reload finds nothing to resume.
const later = page(whole.messages);
await later.until((chat) => chat.status === "ready");
await later.current.resumeStream();
say("later", { status: later.current.status, messages: later.current.messages });
later.unmount();
process.exit(0);
