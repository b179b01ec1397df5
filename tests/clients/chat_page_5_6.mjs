// The page for AI SDK 5 and 6, with what the documentation has for them.
import * as ai from "ai";
import { useChat } from "@ai-sdk/react";
import { offer } from "./chat_page.mjs";
import { useAnswers } from "./chat.mjs";
import { clientTools } from "./client_tools.mjs";
import { fetchAnswer, resumable } from "./resume.mjs";

offer({ ai, useChat, useAnswers, clientTools, fetchAnswer, resumable }, useChat);
