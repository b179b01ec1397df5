// `AbstractChat` of AI SDK 5, 6 or 7, which useChat is made of, and a state that is a list.
export class State {
  status = "ready";
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) =>
    (this.messages = this.messages.map((one, place) => (place === index ? structuredClone(message) : one)));
  snapshot = (value) => structuredClone(value);
}

export async function chatOf(version) {
  const sdk = await import(version === "7" ? "ai" : `ai-${version}`);
  class Chat extends sdk.AbstractChat {
    async until(holds) {
      while (!holds(this)) await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  return { sdk, Chat, State };
}
