"""Checks over several databases: that they are those of the settings, share streams as these say, and have all keys."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

from .. import stream_ids
from ..auth import all_keys
from ..db import database_identity, placements
from ..errors import ConfigurationError
from ..settings import Settings
from . import access_checks
from .database_facts import MOST_COUNTED, DatabaseFacts
from .finding import Finding, Thresholds, amount, error, listed, ok, refusal, warning

_MIGRATE: Final = "Run `baton migrate`, which records the weights of its settings in every database."


def findings(
    settings: Settings, facts: Sequence[DatabaseFacts], missing: Mapping[str, str], thresholds: Thresholds
) -> Iterator[Finding]:
    """Examine what is known of the databases that answer. `missing`: the others, and why nothing is known of them."""
    for name, reason in missing.items():
        yield warning(
            "database_not_compared",
            f"{name!r} was not compared with the others: {reason}.",
            "Run the doctor again once that is corrected.",
        )
    if not facts:
        return
    yield from _identities(facts)
    yield _weights(settings, facts)
    yield from _drained(settings, facts)
    yield from _keys(settings, facts)
    yield from _unserved(facts)
    yield _clocks(facts, thresholds)


def _identities(facts: Sequence[DatabaseFacts]) -> Iterator[Finding]:
    well = True
    for item in facts:
        try:
            database_identity.compare(item.identity, item.entry)
        except ConfigurationError as problem:
            well = False
            yield refusal("database_number", problem)
    try:
        database_identity.check_installation({item.entry.name: item.identity for item in facts})
    except ConfigurationError as problem:
        well = False
        yield refusal("installations_differ", problem)
    if well:
        numbers = ", ".join(f"{item.entry.name} {item.entry.number}" for item in facts)
        yield ok("database_numbers", f"The databases have their numbers, and belong together: {numbers}.")


def _weights(settings: Settings, facts: Sequence[DatabaseFacts]) -> Finding:
    lists = placements.merged([item.placements for item in facts])
    wanted = {entry.number: entry.weight for entry in settings.all_databases}
    names = {entry.number: entry.name for entry in settings.all_databases}
    if not lists:
        return error(
            "weights_missing", "The databases have no list of weights, so each pod follows its own settings.", _MIGRATE
        )

    def shares(weights: dict[int, float]) -> str:
        return ", ".join(f"{names.get(number, f'number {number}')} {weight:g}" for number, weight in weights.items())

    recorded = dict(lists[-1].weights)
    if recorded != wanted:
        return warning(
            "weights_differ",
            f"Pods share new streams by the recorded weights, {shares(recorded)}, and the settings say "
            f"{shares(wanted)}.",
            _MIGRATE,
        )
    lacking = [item.entry.name for item in facts if len(item.placements) < len(lists)]
    if lacking:
        return warning("weights_incomplete", f"Lists of weights are missing in {listed(lacking)}.", _MIGRATE)
    return ok("weights", f"New streams are shared by these weights: {shares(wanted)}.")


def _drained(settings: Settings, facts: Sequence[DatabaseFacts]) -> Iterator[Finding]:
    for item in facts:
        if item.entry.weight:
            continue
        name = repr(item.entry.name)
        if item.streams or item.webhook_calls:
            more = " or more" if item.streams == MOST_COUNTED else ""
            held = f"{amount(item.streams, 'stream')}{more}"
            calls = f" and {amount(item.webhook_calls, 'call')} of webhooks" if item.webhook_calls else ""
            yield ok("draining", f"{name} takes no new streams. It still holds {held}{calls}{_last(settings, item)}.")
        else:
            yield ok(
                "drained",
                f"{name} takes no new streams, and has none. It can get a weight, or its entry can be removed from "
                "BATON_DATABASES. Its number must not be used again.",
            )


def _last(settings: Settings, item: DatabaseFacts) -> str:
    if item.newest is None:
        return ""
    moment = datetime.datetime.fromtimestamp(stream_ids.moment_of(item.newest), datetime.UTC)
    return f"; the newest expires around {moment + datetime.timedelta(days=settings.retention_days + 1):%Y-%m-%d} (UTC)"


def _keys(settings: Settings, facts: Sequence[DatabaseFacts]) -> Iterator[Finding]:
    found = {item.entry.name: item.keys for item in facts if item.keys is not None}
    if not found:
        return  # as a worker's role, which may not read keys
    shared = all_keys.union(found)
    yield access_checks.judged(settings, sum(item.state == "live" for item in shared))
    missing = {name: sum(name in item.missing for item in shared) for name in found}
    unrevoked = {name: sum(name in item.unrevoked for item in shared) for name in found}
    lacks = [f"{amount(count, 'key')} missing in {name}" for name, count in missing.items() if count]
    lacks += [f"{amount(count, 'key')} not revoked in {name}" for name, count in unrevoked.items() if count]
    if lacks:
        yield warning(
            "keys_differ", f"The databases have different API keys: {', '.join(lacks)}.", "Run `baton keys sync`."
        )
    else:
        yield ok("keys", "All databases have the same API keys.")


def _unserved(facts: Sequence[DatabaseFacts]) -> Iterator[Finding]:
    if not any(item.live_workers for item in facts):
        return  # which the checks of each database report
    for item in facts:
        if not item.live_workers and (item.entry.weight or item.streams):
            yield warning(
                "database_unserved",
                f"No worker serves {item.entry.name!r}, so its streams stay queued. Workers serve other databases.",
                "Name it in BATON_WORKER_DATABASES of some workers, or leave that out, and restart them.",
            )


def _clocks(facts: Sequence[DatabaseFacts], thresholds: Thresholds) -> Finding:
    for one, other in combinations(facts, 2):
        ahead = one.clock_ahead_seconds - other.clock_ahead_seconds
        uncertain = one.clock_uncertain_seconds + other.clock_uncertain_seconds
        if abs(ahead) - uncertain > thresholds.clock_seconds:
            return warning(
                "database_clocks",
                f"The clocks of {one.entry.name!r} and {other.entry.name!r} differ by {abs(ahead):.3f} s "
                f"(± {uncertain:.3f} s).",
                "Run a time service on the servers. Lists order the streams of all databases by these clocks.",
            )
    return ok("database_clocks", f"The clocks of the databases agree within {thresholds.clock_seconds:g} s.")
