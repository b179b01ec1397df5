"""What a user learns if `baton`, another project with the same package, is installed beside `baton-stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from baton.doctor.finding import Case, Finding, Level
from baton.doctor.installation_checks import other_distribution


def install_other(folder: Path, *files: str) -> None:
    metadata = folder / "baton-1.0.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: baton\nVersion: 1.0.2\n")
    (metadata / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


async def finding() -> Finding:
    (found,) = [item async for item in other_distribution(cast(Case, cast(Any, None)))]
    return found


async def test_the_doctor_warns_of_a_distribution_that_shares_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_other(tmp_path, "baton/__init__.py", "baton/models.py")
    monkeypatch.syspath_prepend(tmp_path)
    found = await finding()
    assert (found.level, found.code) == (Level.WARNING, "distribution")
    assert "`baton` 1.0.2" in found.message
    assert "pip uninstall --yes baton baton-stream" in found.advice


async def test_the_doctor_does_not_warn_of_one_without_shared_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_other(tmp_path, "other.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert (await finding()).level is Level.OK
