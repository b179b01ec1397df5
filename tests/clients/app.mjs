// An app of React Native that shows one stream twice, as a chat and as a single answer. A test says what happens to its phone.
import { createElement } from "react";
import { createInterface } from "node:readline";
import { mount, say, textOf } from "./react.mjs";
import { phone } from "react-native";
import { Answer } from "./app_answer.jsx";
import { useAppChat } from "./app_chat.mjs";

const { createRoot } = await import("react-dom/client");

const [url] = process.argv.slice(2);
const chat = mount(() => useAppChat({ id: "42", model: "tap", token: "t" }));
const screen = document.createElement("div");
const answer = () => chat.current.messages.findLast(({ role }) => role === "assistant");
const poll = async (holds) => {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 10));
};

const happens = {
  ...phone,
  asks: async () => {
    await poll(() => chat.current?.status === "ready" && phone.requests.length === 1);
    chat.current.sendMessage({ text: "Hello" });
    await poll(() => answer()?.metadata?.streamId);
    createRoot(screen).render(createElement(Answer, { stream: { url, id: answer().metadata.streamId }, token: "t" }));
  },
  shows: (word) => poll(() => textOf(answer()).includes(word) && screen.textContent.includes(word)),
};
for await (const line of createInterface({ input: process.stdin })) {
  const [what, given] = line.split(" ");
  await happens[what](given);
  say(line, { requests: phone.requests.length });
}
await poll(() => ["ready", "error"].includes(chat.current.status) && !screen.querySelector("button"));
const { status, error } = chat.current;
say("ended", { status, error: error?.message ?? null, chat: textOf(answer()), screen: screen.textContent, requests: phone.requests });
process.exit(0);
