"""The routes of a pod: a module for each dialect, one for the platform, and those of the pages for people.

Each route is declared once, by the decorator at its handler (`routing`). To add a dialect:

1. Write its encoding as a module of `baton.dialects`: a class with `encode`, as `dialects.protocol.Dialect` says, whose
   state says all that it must remember from one batch to the next.
2. Write a module here with `ROUTES = Routes(...)`. Let each handler find the stream, and where its client is.
3. State both as an `opening.Opening` and return `await opening.follow(...)`: it admits the client, subscribes, skips
   what the client has, and answers. A route that creates the stream first calls `following.require_followable`.
4. Declare each route by `@ROUTES.route(...)`, with the type of its frames in `event_types`, and add the module's
   `ROUTES` below. A test fails for routes that are not here.
5. Add the dialect to `tests/unit/dialects`, to the lists of dialects in both `test_openapi.py` (unit and integration),
   and its routes to the requests in `tests/integration/api/test_access.py`.
"""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import (
    agui,
    aisdk,
    aisdk_data,
    anthropic_messages,
    browser_builds,
    chat,
    console,
    conversations,
    demo,
    documents,
    durable_creation,
    durable_reading,
    durable_writing,
    langgraph,
    langgraph_runs,
    native,
    native_end,
    native_events,
    native_inputs,
    openai_conversations,
    openai_models,
    operations,
    responses,
)

ROUTES: list[BaseRoute] = [
    *native.ROUTES,
    *native_events.ROUTES,
    *native_end.ROUTES,
    *native_inputs.ROUTES,
    *responses.ROUTES,
    *chat.ROUTES,
    *anthropic_messages.ROUTES,
    *openai_models.ROUTES,
    *openai_conversations.ROUTES,  # before `conversations`, whose path matches `…/items` too
    *conversations.ROUTES,
    *aisdk.ROUTES,
    *langgraph_runs.ROUTES,
    *langgraph.ROUTES,  # after `langgraph_runs`: its last route takes all other paths below the prefix
    *aisdk_data.ROUTES,
    *agui.ROUTES,
    *durable_reading.ROUTES,
    *durable_creation.ROUTES,
    *durable_writing.ROUTES,
    *operations.ROUTES,
    *documents.ROUTES,
    *console.ROUTES,
    *browser_builds.ROUTES,
]

# Only the pods of `baton demo` have these as well.
DEMO_ROUTES: list[BaseRoute] = list(demo.ROUTES)
