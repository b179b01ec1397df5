// The page for AI SDK 3 and 4, whose `ai/react` is the `@ai-sdk/react` that fits.
import { useChat } from "ai/react";
import { offer } from "./chat_page.mjs";

offer({ useChat }, useChat);
