"""Dialects: the wire formats in which a client can follow a stream. Each is a pure function of a log.

`dialect` says what a dialect is. `native`, `text`, `chat`, `responses` and `aisdk` are one dialect each; modules with a
longer name (`responses_items`, `aisdk_chunks`) are parts of one. A new dialect is a module here and one in `baton.api`,
whose docstring has the five steps.
"""
