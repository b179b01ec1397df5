"""The settings for CORS: lists of origins and of headers."""

from __future__ import annotations

import pytest

from baton.api.cross_origin import ANSWER_HEADERS
from baton.errors import ConfigurationError
from baton.settings import Settings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://a.example/", "each must look like https://host"),
        ("https://a.example/path", "must look like"),
        ("a.example", "must look like"),
        ("https://A.example", "in lower case"),
        ("https://*.example", "must look like"),
        ("null", "must look like"),
        ("*, https://a.example", "* means all origins, and must be the only item"),
    ],
)
def test_invalid_origins_are_refused(given: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(allowed_origins=given)
    assert str(caught.value).startswith("BATON_ALLOWED_ORIGINS: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("x csrf", "each must be the name of a header"),
        ("x-csrf:", "must be the name"),
        ("x-*", "must be the name"),
        ("x-é", "must be the name"),
        ("*, x-csrf-token", "* means all headers, and must be the only item"),
    ],
)
def test_invalid_headers_are_refused(given: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(allowed_headers=given)
    assert str(caught.value).startswith("BATON_ALLOWED_HEADERS: ")
    assert told in str(caught.value)


def test_origins_are_a_list() -> None:
    origins = {"https://a.example", "http://localhost:3000", "capacitor://localhost"}
    assert Settings.load(allowed_origins=", ".join(origins) + ",").allowed_origins == origins
    assert len({name.lower() for name in ANSWER_HEADERS}) == len(ANSWER_HEADERS)
