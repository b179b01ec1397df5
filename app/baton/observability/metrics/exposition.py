"""A worker's metrics over HTTP, from a thread of their own: its event loop belongs to the tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from prometheus_client import start_http_server

from ...errors import ConfigurationError
from .worker import WorkerMetrics

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exposed(metrics: WorkerMetrics, host: str, port: int | None) -> Iterator[str | None]:
    """Serve them at `/metrics`, if there is a port (0 takes a free one); yield the address.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigurationError(
            f"BATON_WORKER_METRICS_PORT: cannot listen on {host}:{port}: {error.strerror or error}."
        ) from None
    url = f"http://{host}:{server.server_port}/metrics"
    logger.info("Metrics are at %s", url)
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
