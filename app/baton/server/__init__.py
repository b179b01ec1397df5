"""The server of `baton serve`: uvicorn, with limits on clients and the drain that a rolling deployment needs.

`serve` starts it, `http_protocol` parses requests, and `graceful_shutdown` runs when SIGTERM comes.
"""
