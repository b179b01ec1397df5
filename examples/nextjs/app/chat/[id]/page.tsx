import { loadChat } from "../../../chats";
import { Chat } from "./chat";

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  // Check here that the chat is the user's.
  const { id } = await params;
  return <Chat id={id} messages={await loadChat(id)} />;
}
