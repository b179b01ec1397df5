"""Baton hands a live LLM answer from pod to pod without dropping a token, on Postgres alone."""

__version__ = "0.1.0"
