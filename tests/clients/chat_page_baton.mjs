// The page for AI SDK 5, 6 and 7 with the transport of `baton-stream`, as the documentation has it.
import * as ai from "ai";
import { useBatonChat } from "./baton_chat.mjs";
import { offer } from "./chat_page.mjs";

offer({ ai, useBatonChat }, useBatonChat);
