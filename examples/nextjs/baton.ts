// Where Baton is: for this server, and for browsers, if they know it by another address.

export const BATON_URL = process.env.BATON_URL ?? "http://localhost:8001";
/** An API key with the scopes `create`, `produce`, `read` and `cancel`. */
export const BATON_KEY = process.env.BATON_KEY;
const PUBLIC_URL = process.env.BATON_PUBLIC_URL ?? BATON_URL;

export function askBaton(method: string, path: string, body?: object): Promise<Response> {
  const headers = BATON_KEY ? { authorization: `Bearer ${BATON_KEY}` } : undefined;
  return fetch(new URL(path, BATON_URL), { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
}

/** Send the browser to a pod. It follows the answer there, whether or not this server lives. */
export function redirectToAnswer(chat: string, token: string | null, startIndex: string | null = null): Response {
  const address = new URL(`/v1/ai-sdk/chat/${encodeURIComponent(chat)}/stream`, PUBLIC_URL);
  if (token) address.searchParams.set("token", token);
  if (startIndex) address.searchParams.set("startIndex", startIndex);
  return Response.redirect(address, 303); // with 303, a POST becomes a GET
}
