// Messages of the AI SDK on their way from a page back to the model.

interface Part {
  type: string;
  toolName?: string;
  providerExecuted?: boolean;
}

/**
 * Return a page's messages in the form that `convertToModelMessages` needs in the handler that runs these tools.
 *
 * A page must run no tool of the handler, so pods mark their calls as `providerExecuted`. The model's API, which knows
 * nothing of these tools, then gets calls without results, and refuses them. This removes the mark from the calls of
 * tools that have an `execute`, and leaves the tools of the provider alone.
 */
export function ownTools<Message extends { parts: readonly { type: string }[] }>(messages: readonly Message[], tools: object): Message[] {
  const own = new Set(Object.entries(tools).flatMap(([name, tool]) => (typeof tool?.execute === "function" ? [name] : [])));
  const isOwn = (part: Part): boolean => own.has(part.type === "dynamic-tool" ? part.toolName! : part.type.replace(/^tool-/, ""));
  const unmarked = ({ providerExecuted: _, ...part }: Part): Part => part;
  return messages.map((message) => ({
    ...message,
    parts: message.parts.map((part: Part) => (part.providerExecuted && isOwn(part) ? unmarked(part) : part)),
  }));
}
