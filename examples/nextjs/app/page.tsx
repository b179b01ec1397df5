"use client";

import { useEffect, useState } from "react";
import { Chat, type Saved } from "./chat";

// The browser keeps the messages here. An application saves them in its database.
const load = (): Saved => JSON.parse(localStorage.getItem("chat") ?? "null") ?? { id: crypto.randomUUID(), messages: [] };
const save = (chat: Saved) => localStorage.setItem("chat", JSON.stringify(chat));

export default function Page() {
  const [saved, setSaved] = useState<Saved>();
  useEffect(() => setSaved(load()), []);
  return saved && <Chat saved={saved} save={save} />;
}
