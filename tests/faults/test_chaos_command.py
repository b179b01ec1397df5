"""`baton chaos` as a person runs it, and stops it: nothing of it may be left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import processes_of

SECONDS = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket in it."""
    made = Path(tempfile.mkdtemp(prefix="bc-"))
    yield made
    shutil.rmtree(made)


@pytest.mark.slow
def test_ctrl_c_during_an_outage_leaves_no_processes_or_files(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    command = [sys.executable, "-m", "baton", "chaos", "--streams", "2", "--seed", "9", "--faults", "postgres outage"]
    command += ["--pods", "2", "--workers", "2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | {"TMPDIR": str(folder)},
        cwd=folder,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    with process:
        told = []
        for line in process.stdout:
            told.append(line)
            if " 1 faults" in line:
                # As a terminal sends it: to the whole foreground group; and twice, as people do.
                os.killpg(process.pid, signal.SIGINT)
                os.killpg(process.pid, signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT, "".join(told)
    assert told[-1] == "Stopped. The seed was 9.\n"
    assert processes_of(folder) == []
    assert list(folder.glob("baton*")) == []
