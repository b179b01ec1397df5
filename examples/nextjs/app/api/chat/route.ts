import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { convertToModelMessages, isStepCount, streamText, tool, type UIMessage } from "ai";
import { ownTools, produce } from "baton-stream/produce";
import { after } from "next/server";
import { z } from "zod";
import { BATON_KEY, BATON_URL, redirectToAnswer } from "../../../baton";
import { saveChat } from "../../../chats";

export const maxDuration = 300;

const provider = createOpenAICompatible({
  name: "provider",
  baseURL: process.env.MODEL_URL ?? "https://api.openai.com/v1",
  apiKey: process.env.MODEL_KEY,
  includeUsage: true,
});

const tools = {
  clock: tool({
    description: "Returns the time of day in a time zone.",
    inputSchema: z.object({ timeZone: z.string().describe("Such as Europe/Oslo") }),
    execute: async ({ timeZone }) => new Date().toLocaleTimeString("en", { timeZone }),
  }),
};

export async function POST(request: Request) {
  // Check here that the user is signed in, and that the chat is theirs.
  const { id, messages }: { id: string; messages: UIMessage[] } = await request.json();
  const prompt = await convertToModelMessages(ownTools(messages, tools));
  const model = provider(process.env.MODEL ?? "gpt-5-mini");
  const answer = await produce(
    ({ signal }) => streamText({ model, messages: prompt, tools, stopWhen: isStepCount(5), abortSignal: signal }).stream,
    { create: { url: BATON_URL, token: BATON_KEY, input: { messages }, metadata: { chat: id }, viewers: { scopes: ["read"] } } },
  );
  after(async () => {
    await answer.done; // the platform keeps this process until the answer is written
    await saveChat(id);
  });
  return redirectToAnswer(`run_${answer.id!.replaceAll("-", "")}`, answer.token);
}
