"""The embedded Postgres, where it is started by several processes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
