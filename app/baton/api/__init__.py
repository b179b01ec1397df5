"""The routes of a pod: a module for each dialect, and one for the platform."""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import aisdk, chat, native, openai, operations, responses

ROUTES: list[BaseRoute] = [
    *native.ROUTES,
    *responses.ROUTES,
    *chat.ROUTES,
    *openai.ROUTES,
    *aisdk.ROUTES,
    *operations.ROUTES,
]
