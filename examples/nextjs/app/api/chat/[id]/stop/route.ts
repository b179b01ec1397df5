import { askBaton } from "../../../../../baton";

/** Cancel the chat's answer. The handler that writes it aborts its call of the model, wherever it runs. */
export async function POST(_request: Request, { params }: { params: Promise<{ id: string }> }) {
  // Check here that the chat is the user's.
  const { id } = await params;
  const stopped = await askBaton("POST", `/v1/ai-sdk/chat/${encodeURIComponent(id)}/stop`);
  return new Response(null, { status: stopped.ok ? 204 : 502 });
}
