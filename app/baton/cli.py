"""The command `baton`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from . import __version__
from .commands.keys import app as keys_app
from .errors import ConfigurationError
from .events import Status
from .schema.grants import Revocation, RoleNames
from .schema.grants import script as grants_script
from .schema.patience import Patience

if TYPE_CHECKING:
    from .settings import Settings

# Each command imports what it needs when it is called: all of it together takes more than a second, and Alembic and
# SQLAlchemy alone 40 MB, which pods and workers, who need neither, shall not pay.

app = typer.Typer(
    help="Hands a live LLM answer from pod to pod without dropping a token, on Postgres alone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")

_PATIENCE = Patience()
_ROLES = RoleNames()
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _options(*, version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False) -> None:
    if version:
        typer.echo(f"baton {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on (BATON_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on (BATON_PORT).")] = None,
) -> None:
    """Run a pod: create streams, and relay their events to clients."""
    from .server.serve import serve as serve_pod

    settings = _settings(host=host, port=port)
    _run(settings, lambda: _traced(settings.pod_name, lambda: serve_pod(settings)), pod=settings.pod_name)


@app.command()
def worker(
    concurrency: Annotated[int | None, typer.Option(help="Streams at once (BATON_WORKER_CONCURRENCY).")] = None,
) -> None:
    """Run a worker: claim queued streams, and generate their events."""
    settings = _settings(worker_concurrency=concurrency)
    _run(settings, lambda: _traced(settings.worker_name, lambda: _work(settings)), worker=settings.worker_name)


@app.command()
def migrate(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and change nothing.")
    ] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print SQL for psql instead, and change nothing.")] = False,
    to: Annotated[str | None, typer.Option(help="The revision to stop at; default: the newest.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="With --sql, the revision to begin at, or `base`; default: the database's."),
    ] = None,
    lock_timeout_milliseconds: Annotated[
        int, typer.Option(min=1, help="The longest wait for a lock, during which others wait behind it.")
    ] = _PATIENCE.lock_timeout_milliseconds,
    give_up_seconds: Annotated[
        float, typer.Option(min=0, help="How long a revision is tried again.")
    ] = _PATIENCE.give_up_seconds,
) -> None:
    """Bring the database to this version's schema, and create partitions ahead."""
    if dry_run and sql:
        raise typer.BadParameter("--dry-run and --sql both change nothing: choose one of them.")
    if start is not None and not sql:
        raise typer.BadParameter("--from is for --sql: otherwise the database itself says where it is.")
    settings = _settings()
    patience = Patience(lock_timeout_milliseconds, give_up_seconds)
    if sql:
        _run(settings, lambda: _write_migrations(settings, start, to, patience))
    elif dry_run:
        _run(settings, lambda: _announce_migrations(settings, to))
    else:
        _run_migrations(settings, to, patience)


@app.command()
def maintain(
    *,
    every: Annotated[float | None, typer.Option(min=1, metavar="SECONDS", help="Do it again and again.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
) -> None:
    """Create partitions ahead, delete what has expired (BATON_RETENTION_DAYS), and drop its partitions."""
    if every is not None and dry_run:
        raise typer.BadParameter("--dry-run cannot be repeated: leave out --every.")
    from .commands.interruption import Interrupted, interruptible

    settings = _settings()
    try:
        _run(settings, lambda: interruptible(_maintain(settings, every, dry_run=dry_run)))
    except Interrupted as interrupted:
        # Being stopped is how the loop ends.
        raise typer.Exit(0 if every is not None else interrupted.exit_status) from None


@app.command(name="mark-restored")
def mark_restored(
    *,
    nothing_lost: Annotated[
        bool,
        typer.Option(
            "--nothing-lost", help="After a planned switchover: keep what was queued or running. You vouch for the log."
        ),
    ] = False,
) -> None:
    """After a restore from a snapshot or a dump: end what was queued or running in it, and refuse older cursors.

    A promotion, and a restore to a point in time, are noticed without this.
    """
    import asyncio

    from .db import history
    from .db.postgres import ask

    settings = _settings()
    asked = ask(
        settings.dsn,
        history.declare_complete if nothing_lost else history.mark_restored,
        name="baton mark-restored",
        role="the one of `baton migrate`",
        prepare=settings.prepare,
    )
    live = asyncio.run(asked)
    if nothing_lost:
        typer.echo(f"{live} queued or running streams of an older history continue in this one.")
        return
    typer.echo(
        f"Marked. {live} streams were queued or running. Each ends as log_rewound when a worker sees it, unless its "
        "own worker lived through the restore and finds all of its events in the log."
    )


@app.command()
def grants(
    migrate: Annotated[str, typer.Option(help="The role that runs `baton migrate`.")] = _ROLES.migrate,
    work: Annotated[str, typer.Option(help="The role of workers.")] = _ROLES.work,
    serve: Annotated[str, typer.Option(help="The role of pods.")] = _ROLES.serve,
    *,
    revoke_connect: Annotated[
        bool, typer.Option("--revoke-connect", help="Let only roles that were granted it connect to the database.")
    ] = False,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="ROLE", help="With --revoke-connect, a role that may still connect.")
    ] = None,
    lock_out_others: Annotated[
        bool, typer.Option("--lock-out-others", help="With --revoke-connect, lock out others that have no session now.")
    ] = False,
) -> None:
    """Print the SQL that makes three roles with the least rights that Baton needs; changes nothing itself."""
    if (keep or lock_out_others) and not revoke_connect:
        raise typer.BadParameter("--keep and --lock-out-others are for --revoke-connect.")
    names = RoleNames(migrate=migrate, work=work, serve=serve)
    revocation = Revocation(tuple(keep or ()), lock_out_others) if revoke_connect else None
    typer.echo(grants_script(names, revocation), nl=False)


@app.command()
def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count as errors.")] = False,
) -> None:
    """Look at the database and say what is wrong, and what to do; exit code 1 if there is an error."""
    from .doctor.report import run as run_doctor

    raise typer.Exit(run_doctor(_settings(), as_json=as_json, strict=strict))


@app.command()
def tail(
    stream: Annotated[str, typer.Argument(help="The id of the stream.")],
    *,
    url: Annotated[str, typer.Option(envvar="BATON_URL", help="The address of the pods.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="BATON_KEY", help="An API key or a stream's token; better in BATON_KEY.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Begin after the event of this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Watch a stream to its end, coming back by itself when a pod goes away."""
    from .commands.tail import run as run_tail

    # Either may come from a file that ends with a line break.
    credential = key and key.strip()
    raise typer.Exit(run_tail(stream, url=url.strip(), credential=credential, cursor=after, as_json=as_json))


@app.command()
def streams(
    *,
    status: Annotated[Status | None, typer.Option(help="Only those in this state.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's; default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, at most.")] = 20,
    silent: Annotated[
        bool,
        typer.Option("--silent", help="Only those whose generator is silent (BATON_SILENT_SECONDS), longest first."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the newest streams, as the database has them."""
    if silent and status not in {None, "running"}:
        raise typer.BadParameter("--silent is for streams that run: leave out --status.")
    from .commands.listing import Wanted, list_streams

    list_streams(_settings(), Wanted(tenant, status, limit, silent), as_json=as_json)


@app.command()
def workers(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the workers that live, as the database has them."""
    from .commands.listing import list_workers

    list_workers(_settings(), as_json=as_json)


@app.command()
def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Stay up, to be tried in a browser and by hand.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The pods' port; default: a free one.")] = None,
) -> None:
    """Stream an answer, kill the pod that serves it, and resume on another; brings its own Postgres."""
    from .demo.demo import run as run_demo

    raise typer.Exit(run_demo(serve=serve, port=port))


@app.command()
def chaos(
    *,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults are injected.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Plays the same faults again; default: a random one.")] = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 60,
    viewers: Annotated[int, typer.Option(min=1, help="Viewers of each stream.")] = 4,
    pods: Annotated[int, typer.Option(min=2, help="Pods.")] = 3,
    workers: Annotated[int, typer.Option(min=2, help="Workers.")] = 3,
    kinds: Annotated[str | None, typer.Option(help="Only these faults, comma-separated, in this order.")] = None,
    database_url: Annotated[
        str | None, typer.Option(help="A database to use instead of an embedded one (BATON_DATABASE_URL).")
    ] = None,
) -> None:
    """Break processes, connections and the database at random, and see that no viewer misses anything."""
    from .chaos.run import Options
    from .chaos.run import run as run_chaos

    options = Options(
        seconds=seconds,
        seed=seed,
        streams=streams,
        viewers=viewers,
        pods=pods,
        workers=workers,
        kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",")],
        database_url=database_url,
    )
    raise typer.Exit(run_chaos(options))


def main() -> None:
    """Run the command line; a person's mistake gets a sentence and exit code 2."""
    # A container's first process hears no signal that it has no handler for. Each command has its own, but not at once.
    signal.signal(signal.SIGTERM, _leave_early)
    try:
        app()
    except ConfigurationError as error:
        _fail(str(error))


def _leave_early(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)


async def _write_migrations(settings: Settings, start: str | None, to: str | None, patience: Patience) -> None:
    from .schema.migrate import revision_of
    from .schema.offline import script

    if start is None and settings.database_url is not None:
        start = await revision_of(settings.dsn)
    begin = None if start == "base" else start
    typer.echo(script(start=begin, to=to, days_ahead=settings.partition_days_ahead, patience=patience), nl=False)


async def _announce_migrations(settings: Settings, to: str | None) -> None:
    from .schema.migrate import announce

    await announce(settings.dsn, days_ahead=settings.partition_days_ahead, to=to, say=typer.echo)


def _run_migrations(settings: Settings, to: str | None, patience: Patience) -> None:
    from .commands.interruption import Interrupted, interruptible

    try:
        _run(settings, lambda: interruptible(_migrate(settings, to, patience)))
    except Interrupted as interruption:
        _errors.print("baton: Stopped. What was under way is undone; run `baton migrate` again to go on.")
        sys.exit(interruption.exit_status)


async def _migrate(settings: Settings, to: str | None, patience: Patience) -> None:
    from .db.listener import session_dsn
    from .schema.migrate import migrate

    dsn = await session_dsn(settings.dsn, settings.listen_dsn, say=typer.echo)
    await migrate(dsn, days_ahead=settings.partition_days_ahead, to=to, patience=patience, say=typer.echo)
    if to is None:
        typer.echo("The database is up to date.")


async def _maintain(settings: Settings, every_seconds: float | None, *, dry_run: bool) -> None:
    from .db.listener import session_dsn
    from .schema.maintain import Policy, keep_maintaining
    from .schema.maintain import maintain as maintain_once

    policy = Policy(settings.partition_days_ahead, settings.retention_days, settings.partition_days)
    if dry_run:
        await maintain_once(settings.dsn, policy, say=typer.echo, dry_run=True)
        return
    dsn = await session_dsn(settings.dsn, settings.listen_dsn, say=typer.echo)
    if every_seconds is None:
        await maintain_once(dsn, policy, say=typer.echo)
    else:
        await keep_maintaining(dsn, policy, every_seconds=every_seconds, say=typer.echo)


async def _work(settings: Settings) -> None:
    import asyncio

    from .generators.registry import close_generators, load_generators
    from .observability.garbage_collector import collect_seldom
    from .observability.metrics.exposition import exposed
    from .worker.worker import Worker

    generators = load_generators(settings)
    working = Worker(settings, generators)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.leave)
    try:
        collect_seldom()
        with exposed(working.metrics, settings.host, settings.worker_metrics_port):
            await working.run()
    finally:
        await close_generators(generators)


async def _traced(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a process; where OpenTelemetry's own variables name a collector, send it what is traced."""
    from .observability import tracing

    if not tracing.wanted():
        await work()
        return
    # It takes a while to load, which is for those who want it.
    from .observability.trace_export import exporting

    with exporting(name):
        await work()


def _settings(**overrides: Any) -> Settings:
    from .settings import Settings

    return Settings.load(**overrides)


def _run(settings: Settings, start: Callable[[], Awaitable[None]], **process: str) -> None:
    import uvloop

    from .observability import log_config

    log_config.configure(
        _errors,
        form=settings.log_format,
        level=settings.log_level,
        project=settings.google_cloud_project,
        **process,
    )

    async def run() -> None:
        await start()

    uvloop.run(run())


def _fail(sentence: str) -> NoReturn:
    _errors.print(f"baton: {sentence}", markup=False)
    sys.exit(2)
