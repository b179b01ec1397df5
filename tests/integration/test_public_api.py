"""The public API: what it names is there, costs nothing until it is used, and is all that docs and examples import."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = {"starlette", "uvicorn", "asyncpg", "sqlalchemy", "alembic", "jwt", "prometheus_client"}
HEAVY = SERVER | {"pydantic", "pydantic_settings", "httpx2", "orjson", "rich", "typer", "structlog", "opentelemetry"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import baton", HEAVY),
        ("from baton import GenerationError", HEAVY),
        ("from baton import Approval, GenerationRequest, as_generation_error, messages", SERVER | {"httpx2", "rich"}),
        ("from baton import ContextFilter, json_formatter, text_formatter", HEAVY - {"orjson"}),
        (
            "import baton.cli, baton.worker.worker, baton.generators.registry, baton.observability.log_config",
            {"starlette", "uvicorn", "httpx2", "sqlalchemy", "alembic", "jwt"},
        ),
        ("from baton.client import Follower", SERVER | {"pydantic", "rich"}),
        (
            "import baton.testing, baton.commands.run",
            {"starlette", "uvicorn", "httpx2", "sqlalchemy", "alembic", "jwt"},
        ),
    ],
)
def test_an_import_loads_only_what_it_needs(statement: str, unwanted: set[str]) -> None:
    command = [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not unwanted & {name.partition(".")[0] for name in loaded}
