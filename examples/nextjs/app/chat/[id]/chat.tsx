"use client";

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, getToolName, isToolUIPart } from "ai";
import { type FormEvent, useEffect, useRef, useState } from "react";
import type { Message } from "../../../chats";

export function Chat({ id, messages }: { id: string; messages: Message[] }) {
  const last = useRef(messages.at(-1));
  const [transport] = useState(
    () =>
      new DefaultChatTransport<Message>({
        // The answer may have ended since the messages were loaded: without its status, request it from the beginning.
        prepareReconnectToStreamRequest: ({ api, id }) => ({
          api: `${api}/${id}/stream${last.current && !last.current.metadata?.status ? "?startIndex=0" : ""}`,
        }),
      }),
  );
  const chat = useChat<Message>({ id, messages, transport, resume: true });
  useEffect(() => {
    last.current = chat.messages.at(-1);
  }, [chat.messages]);

  const busy = chat.status === "submitted" || chat.status === "streaming";
  function send(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const text = String(new FormData(event.currentTarget).get("text"));
    event.currentTarget.reset();
    void chat.sendMessage({ text });
  }
  return (
    <main>
      {chat.messages.map((message) => (
        <article key={message.id} style={{ whiteSpace: "pre-wrap" }}>
          <strong>{message.role === "user" ? "You" : "Model"}</strong>
          {message.parts.map((part, index) => (
            <Part key={index} part={part} />
          ))}
        </article>
      ))}
      {chat.error && (
        <p role="alert">
          {chat.error.message}{" "}
          {!chat.messages.at(-1)?.metadata?.status && <button onClick={() => void chat.resumeStream()}>Reconnect</button>}
        </p>
      )}
      <form onSubmit={send}>
        <input name="text" aria-label="Message" autoComplete="off" required disabled={busy} />
        {busy ? (
          <button type="button" onClick={() => void fetch(`/api/chat/${id}/stop`, { method: "POST" })}>
            Stop
          </button>
        ) : (
          <button>Send</button>
        )}
      </form>
    </main>
  );
}

function Part({ part }: { part: Message["parts"][number] }) {
  if (part.type === "text") return <p>{part.text}</p>;
  if (part.type === "reasoning") return <p style={{ opacity: 0.6 }}>{part.text}</p>;
  if (isToolUIPart(part)) return <code>{`${getToolName(part)} ${JSON.stringify(part.input)} → ${JSON.stringify(part.output)}`}</code>;
  return null;
}
