import { redirect } from "next/navigation";

export const dynamic = "force-dynamic"; // each visit begins a chat

export default function Page() {
  redirect(`/chat/${crypto.randomUUID()}`);
}
