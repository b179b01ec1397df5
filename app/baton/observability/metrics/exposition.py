"""Serves the metrics of workers over HTTP, from a thread of its own: the event loop is for the tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server

from ...errors import ConfigurationError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exposed(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[str | None]:
    """Serve the metrics at `/metrics` if `port` is given (0 picks a free one); yield the URL.

    Raises:
        ConfigurationError: the address is not available.
    """
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, host, registry)
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
