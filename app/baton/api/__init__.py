"""The routes of a pod: a module for each dialect, one for the platform, and those for people."""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import aisdk, chat, console, demo, documents, native, openai, operations, responses

ROUTES: list[BaseRoute] = [
    *native.ROUTES,
    *responses.ROUTES,
    *chat.ROUTES,
    *openai.ROUTES,
    *aisdk.ROUTES,
    *operations.ROUTES,
    *documents.ROUTES,
    *console.ROUTES,
]

# For a demo's pods, besides those.
DEMO_ROUTES: list[BaseRoute] = list(demo.ROUTES)
