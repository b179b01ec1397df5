"""The server of `baton serve`: uvicorn, with the drain that a rolling deployment needs."""
