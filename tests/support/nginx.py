"""nginx in front of pods, with the configuration in docs/deploy.md for a prefix that it removes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.logbook import until

from baton.demo.cluster import reserved_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "deploy.md"
PREFIX = "/api/ai"

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: nothing took a path off")

CONFIGURATION = """
worker_processes 1;
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream pods {{ server {pod}; }}
    server {{
        listen 127.0.0.1:{port} reuseport;
        {location}
    }}
}}
"""


def documented_location() -> str:
    """The block of docs/deploy.md."""
    found = re.search(r"```nginx\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@contextlib.asynccontextmanager
async def nginx(folder: Path, pod_url: str, *, location: str | None = None) -> AsyncIterator[str]:
    """Run nginx in front of a pod; yield its address, without the prefix that it removes."""
    assert NGINX is not None
    with reserved_port() as port:
        text = CONFIGURATION.format(
            folder=folder, pod=pod_url.removeprefix("http://"), port=port, location=location or documented_location()
        )
        (folder / "nginx.conf").write_text(text)
        process = await asyncio.create_subprocess_exec(NGINX, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf")
        try:
            await until(lambda: _listens(process, port))
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    assert process.returncode is None, "nginx has ended: see what it wrote"
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
