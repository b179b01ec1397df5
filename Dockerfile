# baton: pods (`serve`, the default), workers (`worker`), `migrate`, `maintain`, `doctor`.
#   docker build -t baton .
# Your own generators: FROM baton, COPY my_agent.py /app/, ENV BATON_GENERATORS=agent=my_agent:generate
FROM python:3.13-slim AS build

# The SDKs of the model providers, and OpenTelemetry; `--extra=openai`, or none, makes a smaller image.
ARG EXTRAS="--extra=openai --extra=anthropic --extra=otel"
RUN pip install --no-cache-dir uv==0.13.8
# The interpreter of both stages, and the certificates that this image trusts, for builds behind a company's proxy.
ENV UV_PROJECT_ENVIRONMENT=/opt/baton \
    UV_PYTHON=/usr/local/bin/python \
    UV_PYTHON_DOWNLOADS=never \
    UV_SYSTEM_CERTS=true \
    UV_NO_CACHE=true \
    UV_COMPILE_BYTECODE=true \
    UV_LINK_MODE=copy
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev $EXTRAS --no-install-project
COPY README.md LICENSE alembic.ini ./
COPY migrations migrations
COPY app app
RUN uv sync --locked --no-dev $EXTRAS --no-editable

FROM python:3.13-slim

COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    BATON_HOST=0.0.0.0 \
    BATON_PORT=8000
# The standard library comes without bytecode. A user without write access would compile it at each start: 1.5 s.
RUN ["python", "-c", "import baton.cli, baton.doctor.report, baton.schema.maintain, baton.schema.migrate"]
# Some Python images keep the interpreter in a folder that only root can enter.
RUN ["chmod", "a+x", "/root"]
WORKDIR /app
# A number, so that Kubernetes can check that it is not root.
USER 65532:65532
EXPOSE 8000
# Checks that a pod is alive. Containers that run another command turn it off.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; pod = HTTPConnection('127.0.0.1', int(os.environ['BATON_PORT']), timeout=2); pod.request('GET', '/healthz'); sys.exit(pod.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["baton"]
CMD ["serve"]
