"""Dialects: the wire formats in which a client can follow a stream. Each is a pure function of a log.

`protocol` says what a dialect is. `native`, `text`, `durable`, `chat`, `responses`, `anthropic`, `agui`, `langgraph`,
`aisdk` and `aisdk_data` are one protocol each; other modules with a longer name (`responses_items`, `aisdk_chunks`) are
parts of one. A new dialect is a module here and one in `baton.api`, whose docstring has the five steps.
"""
