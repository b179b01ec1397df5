import { Webhook } from "standardwebhooks";
import { saveChat } from "../../../chats";

/** Save a chat when one of its answers has ended: Baton's workers call this, whether or not the handler lives. */
export async function POST(request: Request) {
  const body = await request.text();
  let ended: { data: { metadata: { chat?: string } } };
  try {
    const secret = process.env.BATON_WEBHOOK_SECRET!;
    ended = new Webhook(secret).verify(body, Object.fromEntries(request.headers)) as typeof ended;
  } catch {
    return new Response("The signature is not valid.", { status: 401 });
  }
  const { chat } = ended.data.metadata;
  if (chat) await saveChat(chat);
  return new Response(null, { status: 204 });
}
