"""Tests for the entries of BATON_DATABASES."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from baton.errors import ConfigurationError
from baton.settings import Settings

URL = "postgresql://baton:secret@db/baton"


def load(**entries: Any) -> Settings:
    return Settings.load(databases=orjson.dumps(entries).decode())


def test_the_databases_are_in_the_order_of_their_numbers() -> None:
    settings = load(
        b={"url": URL, "number": 1, "weight": 2.5, "listen_url": f"{URL}2"}, a={"url": f"{URL}1", "number": 0}
    )
    first, second = settings.all_databases
    assert (first.name, first.number, first.weight) == ("a", 0, 1)
    assert (second.name, second.number, second.weight) == ("b", 1, 2.5)
    assert settings.of(first).dsn == settings.of(first).listen_dsn == f"{URL}1"
    assert settings.of(second).dsn == URL
    assert settings.of(second).listen_dsn == f"{URL}2"
    assert not settings.of(second).prepare


def test_one_database_needs_no_entry() -> None:
    settings = Settings.load(database_url=URL)
    (only,) = settings.all_databases
    assert (only.name, only.number, only.weight) == ("", 0, 1)
    assert settings.of(only) is settings


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"a": {"url": URL}}, "'a' needs a number"),
        ({"a": {"url": URL, "number": True}}, "'a' needs a number"),
        ({"a": {"url": URL, "number": 4096}}, "0 to 4095"),
        ({"a": {"number": 1}}, "the entry number 1 must be an object with a url"),
        ({"a": {"url": "", "number": 1}}, "the url of 'a' is empty"),
        ({"a": {"url": "mysql://baton:secret@db", "number": 1}}, "the url of 'a'"),
        ({"a": {"url": URL, "number": 1, "weight": -1}}, "the weight of 'a'"),
        ({"a": {"url": URL, "number": 1, "weight": 0}}, "every weight is 0"),
        ({"a": {"url": URL, "number": 1, "port": 1}}, "'a' has an unknown key"),
        ({"a": {"url": URL, "number": 1}, "b": {"url": URL, "number": 1}}, "the same number, 1"),
        ({"A b": {"url": URL, "number": 1}}, "the name of the entry number 1"),
        ({"a": URL}, "the entry number 1 must be an object"),
    ],
)
def test_a_malformed_entry_is_refused_with_a_sentence(entries: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^BATON_DATABASES: ") as refused:
        load(**entries)
    assert sentence in str(refused.value)
    assert "secret" not in str(refused.value)


def test_several_databases_and_the_url_of_one_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="replaces BATON_DATABASE_URL"):
        Settings.load(database_url=URL, databases={"a": {"url": URL, "number": 0}})


def test_what_works_with_one_database_does_not_take_several() -> None:
    with pytest.raises(ConfigurationError, match="names several databases"):
        _ = load(a={"url": URL, "number": 0}).dsn
