// Where the chats are kept: in files, to keep the example short. An application has a table.

import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import type { UIMessage } from "ai";
import { askBaton } from "./baton";

export type Message = UIMessage<{ status?: "completed" | "failed" | "cancelled" }>;

const FOLDER = ".chats";

function fileOf(id: string): string {
  if (!/^[\w-]{1,64}$/.test(id)) throw new Error("This is not the id of a chat.");
  return `${FOLDER}/${id}.json`;
}

/** Save what was said in a chat, as Baton has it: every message but the answer in progress. */
export async function saveChat(id: string): Promise<void> {
  const file = fileOf(id);
  const conversation = await askBaton("GET", `/v1/conversations/${encodeURIComponent(id)}?form=aisdk`);
  if (!conversation.ok) throw new Error(`The chat cannot be read from Baton (${conversation.status}).`);
  const { messages } = await conversation.json();
  if (messages.length === 0) return; // a new chat, or one that has expired in Baton
  await mkdir(FOLDER, { recursive: true });
  const written = `${file}.${crypto.randomUUID()}`;
  await writeFile(written, JSON.stringify(messages));
  await rename(written, file);
}

/** Return the messages of a chat. A handler that died has saved nothing, so this saves first. */
export async function loadChat(id: string): Promise<Message[]> {
  const file = fileOf(id);
  await saveChat(id).catch((error) => console.error(error)); // what was saved before can be shown
  return JSON.parse(await readFile(file, "utf8").catch(() => "[]"));
}
