"""Accounts at model providers: an address and a key. Models with equal accounts share one client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..settings import Settings


@dataclass(frozen=True, slots=True)
class Account:
    """Where a provider is reached, and with which key. None means the provider's own address, and no key."""

    base_url: str | None = None
    key: str | None = field(default=None, repr=False)
    is_default: bool = True  # the account of the settings, which the SDK's own environment variables belong to

    @property
    def usable(self) -> bool:
        """Whether a provider can be asked: servers at an address of one's own may need no key."""
        return bool(self.key or self.base_url)


def default_account(settings: Settings, provider: str) -> Account:
    """Return a provider's account of the settings."""
    key = getattr(settings, f"{provider}_api_key")
    return Account(getattr(settings, f"{provider}_base_url"), key.get_secret_value() or None if key else None)


def account_of(settings: Settings, entry: Mapping[str, Any]) -> Account:
    """Return the account of an entry of `BATON_MODELS` for a provider.

    The key of the settings is never sent to another address. It belongs to the settings' own.
    """
    default = default_account(settings, entry["generator"])
    base_url = entry.get("base_url", default.base_url)
    if variable := entry.get("api_key_env"):
        found = settings.secret(variable)
        key = found.get_secret_value() if found else None
    else:
        key = default.key if base_url == default.base_url else None
    is_default = (base_url, key) == (default.base_url, default.key)
    return default if is_default else Account(base_url, key, is_default=False)
