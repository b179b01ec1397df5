"use client";
// `baton-stream/react`: follow a stream from a component.

export {};
