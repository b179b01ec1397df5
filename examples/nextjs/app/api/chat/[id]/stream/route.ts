import { askBaton, redirectToAnswer } from "../../../../../baton";

const NOTHING = 204;

/** What `useChat` requests when a page is loaded: redirect it to the chat's newest answer. */
export async function GET(request: Request, { params }: { params: Promise<{ id: string }> }) {
  // Check here that the chat is the user's.
  const { id } = await params;
  const list = await askBaton("GET", `/v1/streams?${new URLSearchParams({ "metadata.chat": id, limit: "1" })}`);
  const [newest] = (await list.json()).data;
  if (!newest) return new Response(null, { status: NOTHING });
  const made = await askBaton("POST", `/v1/streams/${newest.id}/token`, { scopes: ["read"] });
  // An answer that ended long ago has no token, and the page has saved it.
  if (made.status === 404 && newest.status !== "open") return new Response(null, { status: NOTHING });
  const token = made.ok ? (await made.json()).token : null;
  return redirectToAnswer(id, token, new URL(request.url).searchParams.get("startIndex"));
}
