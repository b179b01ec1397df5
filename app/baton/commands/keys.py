"""`baton keys`: creates, lists and revokes API keys, in all databases alike. It also creates secrets that sign streams'
tokens and calls of webhooks.

Results go to standard output, remarks to standard error, so that scripts can read the results.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer
from rich.console import Console

from ..webhook_addresses import SECRET_PREFIX

if TYPE_CHECKING:
    from rich.table import Table

    from ..auth.all_keys import SharedKey
    from .each_database import EachDatabase

app = typer.Typer(
    help="Create, list and revoke API keys (as the role that migrates).", no_args_is_help=True, rich_markup_mode=None
)
_notes = Console(stderr=True, highlight=False, soft_wrap=True)
_SYNC: Final = "Run `baton keys sync` when all databases answer."
_STYLES: Final = {"live": "green", "expired": "yellow", "revoked": "dim"}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for. Names of valid keys are unique.")],
    tenant: Annotated[str, typer.Option(help="The tenant whose streams it can use.")],
    scope: Annotated[
        list[str], typer.Option(help="What it may do: create, read, cancel, produce, input, admin. Repeatable.")
    ],
    expires_days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days after which the key expires.")] = None,
) -> None:
    """Create a key in all databases, and print it once."""
    from . import key_copies

    key, text = asyncio.run(key_copies.create(_each(), name, tenant, scope, expires_days))
    typer.echo(text)
    until = "" if key.expires_at is None else f" It is valid until {key.expires_at:%Y-%m-%d %H:%M} (UTC)."
    _note(
        f"This key, {key.name!r} of {key.tenant!r}, is not shown again: only a hash of it is stored. Pods accept it "
        f"at once.{until}"
    )


@app.command(name="list")
def list_keys(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List all keys, including revoked and expired ones. The keys themselves cannot be shown again."""
    from ..auth.all_keys import union
    from . import key_copies

    each = _each()
    found = union(asyncio.run(key_copies.read(each)))
    if as_json:
        typer.echo(orjson.dumps([_described(item, several=each.several) for item in found], option=orjson.OPT_INDENT_2))
    elif found:
        Console(highlight=False).print(_table(found, several=each.several))
    else:
        _note("There are no keys. Run `baton keys create NAME --tenant TENANT --scope read` to create one.")
    each.require_all("read")


@app.command()
def revoke(id_or_name: Annotated[str, typer.Argument(help="The key's id or name.")]) -> None:
    """Revoke a key for good. Pods refuse it within BATON_KEYS_REFRESH_SECONDS."""
    from . import key_copies

    each = _each()
    key = asyncio.run(key_copies.revoke(each, id_or_name))
    typer.echo(f"Revoked {key.name!r} ({key.id}). Tokens of streams that it created stay valid until they expire.")
    each.require_all("reached", f"Pods that reach no other database accept the key. {_SYNC}")


@app.command()
def sync() -> None:
    """Copy keys and revocations to the databases of BATON_DATABASES that lack them."""
    from . import key_copies

    each = _each()
    changes = asyncio.run(key_copies.sync(each))
    each.require_all("completed", "Remove the reason above, and run this command again.")
    if not changes:
        typer.echo("All databases have the same keys." if each.several else "There is one database, with all keys.")


@app.command(name="token-secret")
def token_secret() -> None:
    """Print a new secret that signs streams' tokens, in the form of BATON_TOKEN_KEYS."""
    typer.echo(f"{secrets.token_hex(4)}={secrets.token_urlsafe(32)}")
    _note(
        "Set BATON_TOKEN_KEYS to this on all pods. To replace an old secret: first append this after it, with a comma, "
        "on all pods; then move this before it; and remove the old one a day later."
    )


@app.command(name="webhook-secret")
def webhook_secret() -> None:
    """Print a new secret that signs calls of webhooks, in the form of BATON_WEBHOOK_SECRETS."""
    typer.echo(f"{SECRET_PREFIX}{base64.b64encode(secrets.token_bytes(32)).decode()}")
    _note(
        "Set BATON_WEBHOOK_SECRETS to this on all workers, and give it to the receiver. To replace an old secret: "
        "append this to it, with a comma, so that calls have a signature of each; then change the receiver; then "
        "remove the old one."
    )


@app.command(name="rotate-notify")
def rotate_notify() -> None:
    """Create a new key that signs notifications. Workers and pods use it without a restart."""
    from ..db import signing_keys
    from .one_connection import MIGRATING_ROLE, run_over_each

    each = _each()
    found = run_over_each(each, signing_keys.rotate, name="baton keys", role=MIGRATING_ROLE)
    seconds = signing_keys.GRACE_SECONDS + signing_keys.REREAD_SECONDS
    for database in each.databases:
        if database.name in found:
            database.say(f"Created key {found[database.name]}. The previous key becomes invalid in {seconds} s.")
    each.require_all("changed")


def _each() -> EachDatabase:
    from ..settings import Settings
    from .each_database import EachDatabase

    return EachDatabase(Settings.load())


def _described(item: SharedKey, *, several: bool) -> dict[str, Any]:
    key = item.key
    described = {
        "id": str(key.id),
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "state": item.state,
    }
    return described | ({"missing_in": item.missing, "not_revoked_in": item.unrevoked} if several else {})


def _table(found: list[SharedKey], *, several: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "tenant", "scopes", "state", "created (UTC)", "ends", "id"):
        table.add_column(heading, overflow="fold")
    if several:
        table.add_column("to sync", overflow="fold")
    for item in found:
        key = item.key
        ends = key.revoked_at or key.expires_at
        table.add_row(
            Text(key.name),
            Text(key.tenant),
            " ".join(sorted(key.scopes)),
            Text(item.state, style=_STYLES[item.state]),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            "never" if ends is None else f"{ends:%Y-%m-%d %H:%M}",
            str(key.id),
            *([_lack(item)] if several else []),
        )
    return table


def _lack(item: SharedKey) -> str:
    missing = f"missing in {', '.join(item.missing)}" if item.missing else ""
    unrevoked = f"not revoked in {', '.join(item.unrevoked)}" if item.unrevoked else ""
    return "; ".join(filter(None, (missing, unrevoked))) or "-"


def _note(sentence: str) -> None:
    _notes.print(sentence, markup=False)
