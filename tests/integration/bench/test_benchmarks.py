"""The benchmarks run: a short one measures Baton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from bench.cluster import ROOT
from bench.missing import Missing
from bench.native import compiled


@pytest.mark.slow
def test_baton_is_measured() -> None:
    try:
        compiled("viewers")
    except Missing as reason:
        pytest.skip(str(reason))
    command = [sys.executable, "-m", "bench.baton", "--streams", "5", "--seconds", "1"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 gaps, 0 repeats, 0 lost, 0 failed" in done.stdout
    assert "pod" in done.stdout
