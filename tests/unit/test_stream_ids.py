"""Tests for the parts of a stream's id."""

from __future__ import annotations

from uuid import UUID

import pytest

from baton import stream_ids


def numbered(number: int, version: int = 8) -> UUID:
    return UUID(int=(0x019A5E2C0000 << 80) | (version << 76) | (number << 64) | (0b10 << 62) | 5)


@pytest.mark.parametrize("number", [1, 7, 4095])
def test_an_id_of_version_8_has_the_number_of_its_database(number: int) -> None:
    assert stream_ids.number_of(numbered(number)) == number


@pytest.mark.parametrize("version", [1, 4, 7])
def test_an_id_of_another_version_is_of_the_database_0(version: int) -> None:
    assert stream_ids.number_of(numbered(77, version)) == 0


def test_ids_of_all_databases_sort_by_time() -> None:
    late, early = stream_ids.first_id(1_800_000_000.5), numbered(9)
    assert early < late
    assert stream_ids.moment_of(late) == 1_800_000_000.5
