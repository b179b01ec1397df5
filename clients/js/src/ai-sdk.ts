// `baton-stream/ai-sdk`: a transport for `useChat` of the AI SDK.

export {};
