// The page for AI SDK 7, the only one that `WorkflowChatTransport` is for.
import * as ai from "ai";
import { useChat } from "@ai-sdk/react";
import { offer } from "./chat_page.mjs";
import { useAnswers } from "./chat.mjs";
import { clientTools } from "./client_tools.mjs";
import { resumable } from "./resume.mjs";
import { workflowTransport } from "./transport.mjs";

offer({ ai, useChat, useAnswers, clientTools, resumable, workflowTransport }, useChat);
