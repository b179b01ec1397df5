"""The embedded Postgres, where it is started by several processes at once, or closed by several threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from baton.demo import embedded

# Says so when it asks for a server, and again when its turn has come.
_STARTS = """
import pathlib, sys
from baton.demo import embedded
embedded.get_server = lambda *_, **__: print("starts", flush=True)
print("asks", flush=True)
embedded._start(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.timeout(60)
def test_processes_start_servers_one_by_one(tmp_path: Path) -> None:
    with embedded._exclusive():
        other = subprocess.Popen([sys.executable, "-c", _STARTS, tmp_path], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
    assert other.communicate()[0] == "starts\n"


class WheelsServer:
    """What the wheel's server is for `EmbeddedPostgres`."""

    def __init__(self, folder: Path) -> None:
        self.pgdata = folder
        self.cleaned_up = False

    def get_uri(self) -> str:
        return "postgresql://"

    def cleanup(self) -> None:
        self.cleaned_up = True


@pytest.mark.timeout(60)
def test_threads_close_servers_one_by_one(tmp_path: Path) -> None:
    wheels = WheelsServer(tmp_path)
    closing = threading.Thread(target=embedded.EmbeddedPostgres(cast(Any, wheels)).close)
    with embedded._exclusive():
        closing.start()
        closing.join(0.5)
        assert not wheels.cleaned_up
    closing.join()
    assert wheels.cleaned_up
