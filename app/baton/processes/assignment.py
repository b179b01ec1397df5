"""What a parent gives a child to run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from ..settings import Settings

Command: TypeAlias = Literal["serve", "worker"]

_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Assignment:
    """One process of a command. `overrides` are the settings from the command line.

    The child reads all other settings itself. So one that replaces another uses what `.env` and the code on the disk
    say then, as after a restart of the command.
    """

    command: Command
    number: int
    overrides: dict[str, Any]
    pod_name: str
    worker_name: str

    @classmethod
    def of(cls, settings: Settings, overrides: dict[str, Any], command: Command, number: int) -> Self:
        """Return the assignment of one process of a command with these settings."""
        names = (_numbered(name, number) for name in (settings.pod_name, settings.worker_name))
        return cls(command, number, overrides, *names)

    def encode(self, channel: int, listening: int | None = None) -> str:
        """Return it as an argument, with the numbers of inherited files. Other users see arguments: no secrets."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"assignment": fields, "channel": channel, "listening": listening, "path": sys.path})

    def settings(self) -> Settings:
        """Read the settings of this process. The parent serves the metrics of workers.

        Raises:
            ConfigurationError: one is missing or out of range.
        """
        own = {"pod_name": self.pod_name, "worker_name": self.worker_name, "worker_metrics_port": None, "processes": 1}
        return Settings.load(**self.overrides).model_copy(update=own)


def _numbered(name: str, number: int) -> str:
    suffix = f"-{number}"
    return name[: _LONGEST_NAME - len(suffix)] + suffix
