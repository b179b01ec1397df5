// A page with a chat: tests open it with any options of `useChat`, call what the hook returns, and ask for its state.
import { createElement, useEffect } from "react";
import { createRoot } from "react-dom/client";

const requests = [];
const send = globalThis.fetch;
globalThis.fetch = async (address, options) => {
  const request = { url: String(address), method: options?.method ?? "GET", body: options?.body };
  requests.push(request);
  const response = await send(address, options);
  request.status = response.status;
  return response;
};

/** Offer tests `names`, and `show(options)`: after it, `chat` is what `useChat` returns, or another hook. `leave()` ends it. */
export function offer(names, useChat) {
  const root = createRoot(document.body);
  Object.assign(window, names, {
    show: (options, useHook = useChat) => root.render(createElement(Chat, { options, useHook })),
    leave: () => root.render(null),
    state: () => ({ messages: chat.messages, status: chat.status, error: chat.error?.message ?? null, requests }),
  });
}

function Chat({ options, useHook }) {
  const chat = useHook(options);
  useEffect(() => {
    window.chat = chat;
  });
  return createElement("main", null, JSON.stringify(chat.messages));
}
