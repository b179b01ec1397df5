"""Nchan: pub/sub inside nginx, in C, with its messages in shared memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.packages import debian, debian_version
from bench.processes import free_port, program

from . import Shape
from .published import Published, publisher

PACKAGES: Final = ("nginx", "libnginx-mod-nchan")
# One process of nginx: several would have to notify each other, which costs more for each event.
CONFIGURATION: Final = """
load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    nchan_shared_memory_size 2048M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/publish/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 10000;
            nchan_message_timeout 60s;
        }}
        location ~ ^/watch/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message oldest;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nchan:
    """Nchan in memory."""

    name: str = "Nchan, memory"
    keeps: bool = False
    serves: str = "nginx"
    flags: Sequence[str] = ("--leave",)

    def versions(self) -> Mapping[str, str]:
        """The versions of Debian's packages."""
        return {package: debian_version(package) for package in PACKAGES}

    def install(self) -> None:
        """Install it from Debian."""
        debian(*PACKAGES)

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, _shape: Shape) -> AsyncIterator[Published]:
        """Start nginx and the publisher."""
        port = free_port()
        configuration = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        configuration.write_text(CONFIGURATION.format(folder=folder, port=port, user=user))
        command = ("nginx", "-p", str(folder), "-c", str(configuration))
        async with program(folder, *command, port=port) as nginx, publisher(port) as publishing:
            yield Published(port, "/publish/{}", "/watch/{}", {"nginx": [nginx]}, publishing)
