// What the types of `baton-stream/ai-sdk` must fit: the chats of AI SDK 5, 6 and 7. `tsc` refuses a line that does not.
import type { ChatInit as ChatInit7, ChatTransport as ChatTransport7, UIMessage as UIMessage7 } from "ai";
import type { ChatInit as ChatInit5, ChatTransport as ChatTransport5, UIMessage as UIMessage5 } from "ai-5";
import type { ChatInit as ChatInit6, ChatTransport as ChatTransport6, UIMessage as UIMessage6 } from "ai-6";
import { BatonError, type BatonChatTransport, batonChatTransport, resumable } from "baton-stream/ai-sdk";

type Metadata = { status?: "completed" | "failed" | "cancelled" };

const transport: BatonChatTransport = batonChatTransport({
  url: "https://pods.example.com",
  token: async () => "t",
  model: "gpt",
  headers: () => ({ "x-csrf-token": "t" }),
  body: { temperature: 1 },
});

export const transports: [ChatTransport5<UIMessage5>, ChatTransport6<UIMessage6>, ChatTransport7<UIMessage7>] = [
  transport,
  transport,
  transport,
];

export const init5 = (messages: UIMessage5<Metadata>[]): ChatInit5<UIMessage5<Metadata>> => ({
  messages: resumable(messages),
  transport: batonChatTransport({ messages }),
});

export const init6 = (messages: UIMessage6<Metadata>[]): ChatInit6<UIMessage6<Metadata>> => ({
  messages: resumable(messages),
  transport: batonChatTransport({ messages }),
});

export const init7 = (messages: UIMessage7<Metadata>[]): ChatInit7<UIMessage7<Metadata>> => ({
  messages: resumable(messages),
  transport: batonChatTransport({ messages }),
  onError: (error) => {
    if (error instanceof BatonError && error.code === "answer_running") void transport.stop("42");
  },
});

// @ts-expect-error: there is no such option
batonChatTransport({ api: "/v1/ai-sdk/chat" });
