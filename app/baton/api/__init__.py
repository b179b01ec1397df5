"""The routes of a pod: a module for each dialect, one for the platform, and one of documents."""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import aisdk, chat, documents, native, openai, operations, responses

ROUTES: list[BaseRoute] = [
    *native.ROUTES,
    *responses.ROUTES,
    *chat.ROUTES,
    *openai.ROUTES,
    *aisdk.ROUTES,
    *operations.ROUTES,
    *documents.ROUTES,
]
