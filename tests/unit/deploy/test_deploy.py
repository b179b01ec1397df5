"""The files in deploy/, compose.yaml and the Dockerfile fit each other, the settings and the schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import AliasChoices
from starlette.routing import Match
from tests.support.manifests import (
    CLOUD_RUN,
    DEPLOY,
    KUBERNETES,
    PROJECT,
    Container,
    compose,
    documents,
    everywhere,
    in_cloud_run,
    in_compose,
    in_kubernetes,
    resources,
)
from tests.support.metric_names import metric_names

from baton import api
from baton.cli import app
from baton.observability import tracing
from baton.server.serve import SHUTDOWN_SECONDS
from baton.settings import Settings

# The oldest and the newest supported release of Kubernetes.
KUBERNETES_VERSIONS = ("1.30", "1.37")
# Cloud Run's grace period for services, worker pools and jobs.
CLOUD_RUN_GRACE_SECONDS = 10
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
NGINX = (DEPLOY / "compose" / "nginx.conf").read_text()
PAGE = (PROJECT / "docs" / "deploy.md").read_text()

# Values of secrets, and of each platform's own variables.
SAMPLES = {
    "BATON_DATABASE_URL": "postgresql://baton_serve:secret@/baton?host=/cloudsql/project:region:instance",
    "BATON_TOKEN_KEYS": f"one={'x' * 43}",
    "BATON_POD_NAME": "baton-pod-5d9c7b6f4-x7x2q",
    "BATON_WORKER_NAME": "baton-worker-5d9c7b6f4-x7x2q",
}


def variables() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names |= {str(n) for n in alias.choices} if isinstance(alias, AliasChoices) else {f"BATON_{name.upper()}"}
    return names


def settings_of(container: Container, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the process in a container, including those of the image."""
    with monkeypatch.context() as patched:
        for name, value in image_environment().items() | container.environment.items():
            # Without a value, compose reads it from the shell, and the platforms from a secret.
            if (given := value if value is not None else SAMPLES.get(name)) is not None:
                patched.setenv(name, given)
        return Settings.load()


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(BATON_[A-Z_]+)=(\S+)", DOCKERFILE.split("FROM ")[-1]))


def each(containers: list[Container]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("container", containers, ids=lambda c: f"{c.where.partition(':')[0]}-{c.command}")


@each(everywhere())
def test_each_variable_is_a_setting_with_a_valid_value(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    assert container.environment.keys() <= variables() | set(tracing.COLLECTOR)
    settings = settings_of(container, monkeypatch)
    assert settings.database_url is not None
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)


@each(everywhere())
def test_each_command_exists(container: Container) -> None:
    assert container.command in {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }


def test_every_platform_has_pods_workers_and_the_migration() -> None:
    assert {"serve", "worker", "migrate"} == set(in_compose())
    assert {"serve", "worker", "migrate", "maintain"} == set(in_kubernetes()) == set(in_cloud_run())


@each([c for c in everywhere() if c.command == "serve"])
def test_probes_use_existing_routes_and_the_pods_port(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    port = settings_of(container, monkeypatch).port
    assert f"EXPOSE {port}" in DOCKERFILE
    names = {}
    for given in container.given.get("ports", []):
        assert given["containerPort"] == port
        names[given["name"]] = port
    for probe in container.probes.values():
        assert names.get(probe["port"], probe["port"]) == port
        scope = {"type": "http", "method": "GET", "path": probe["path"]}
        assert any(route.matches(scope)[0] is Match.FULL for route in api.ROUTES), probe
    if not container.where.startswith("compose"):
        # A pod that cannot reach Postgres is not ready, but a restart would not help.
        assert container.probes["livenessProbe"]["path"] == "/healthz"


def test_the_images_health_checks_use_existing_routes() -> None:
    (checked,) = (line for line in DOCKERFILE.splitlines() if "HTTPConnection" in line)
    for check in (checked, compose()["services"]["pod"]["healthcheck"]["test"][-1]):
        assert "'GET', '/healthz'" in check
    assert "/healthz" in {getattr(route, "path", None) for route in api.ROUTES}


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_grace_periods_exceed_the_time_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (in_compose(), in_kubernetes(), in_cloud_run()):
        pod, worker = found["serve"], found["worker"]
        drain = settings_of(pod, monkeypatch).drain_seconds + SHUTDOWN_SECONDS
        leave = settings_of(worker, monkeypatch).worker_drain_seconds
        assert grace_of(pod) > pre_stop(pod) + drain
        assert grace_of(worker) > pre_stop(worker) + leave


def grace_of(container: Container) -> float:
    if container.where.startswith("compose"):
        return seconds(container.given["stop_grace_period"])
    if container.where.endswith(("Service/baton-pod", "WorkerPool/baton-worker")):
        return CLOUD_RUN_GRACE_SECONDS
    return float(container.around["terminationGracePeriodSeconds"])


def pre_stop(container: Container) -> float:
    return float(container.given.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


def test_proxies_wait_longer_than_baton(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud_run = in_cloud_run()["serve"]
    assert cloud_run.around["timeoutSeconds"] > settings_of(cloud_run, monkeypatch).max_connection_age_seconds
    directives = dict(re.findall(r"^\s*(\w+) (\S+);", NGINX, re.MULTILINE))
    defaults = settings_of(in_compose()["serve"], monkeypatch)
    assert seconds(directives["proxy_read_timeout"]) >= 3 * defaults.sse_keep_alive_seconds
    assert seconds(directives["send_timeout"]) > defaults.write_timeout_seconds
    assert int(directives["client_max_body_size"].removesuffix("m")) << 20 > defaults.max_body_bytes
    assert (directives["proxy_buffering"], directives["proxy_http_version"]) == ("off", "1.1")
    assert not re.search(r"\$(request|request_uri|args|query_string|http_referer)\b", NGINX)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    ("name", "document"), resources(KUBERNETES).items(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_manifests_match_the_kubernetes_schema(name: str, document: dict[str, Any], version: str) -> None:
    del name
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("name", "document"), resources(CLOUD_RUN).items(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_manifests_match_the_cloud_run_schema(name: str, document: dict[str, Any]) -> None:
    del name
    api_versions = {"Service": "serving.knative.dev/v1", "Job": "run.googleapis.com/v1"}
    assert document["apiVersion"] == api_versions.get(document["kind"], "run.googleapis.com/v1")
    schema = cloud_run_schema()
    Draft202012Validator({"$ref": f"#/$defs/{document['kind']}", **schema}).validate(document)
    known = schema["$defs"]["ObjectMeta"]["properties"]["annotations"]["description"]
    for annotation in annotation_names(document):
        assert f"`{annotation}`" in known


def test_an_unknown_cloud_run_field_is_detected() -> None:
    schema = cloud_run_schema()
    service = {"spec": {"template": {"spec": {"containers": [{"image": "a", "securityContext": {}}]}}}}
    errors = [*Draft202012Validator({"$ref": "#/$defs/Service", **schema}).iter_errors(service)]
    assert "securityContext" in str(errors)


def cloud_run_schema() -> dict[str, Any]:
    """Return the schemas of the API's own description. They refuse unknown and unsupported fields."""
    package = distribution("google-api-python-client")
    path = package.locate_file("googleapiclient/discovery_cache/documents/run.v1.json")
    schemas = json.loads(Path(str(path)).read_text())["schemas"]
    for schema in schemas.values():
        properties = schema.get("properties", {})
        kept = {
            name: of for name, of in properties.items() if not of.get("description", "").startswith("Not supported")
        }
        schema |= {"properties": kept, "additionalProperties": False}
    named = re.sub(r'"\$ref": "(\w+)"', r'"$ref": "#/$defs/\1"', json.dumps(schemas))
    # 64-bit numbers are strings in JSON. YAML may write them as numbers.
    return {"$defs": json.loads(named)}


def annotation_names(node: Any) -> set[str]:
    if not isinstance(node, dict):
        return set()
    own = set(node.get("metadata", {}).get("annotations", {}))
    return own.union(*(annotation_names(value) for value in node.values()))


def test_images_agree() -> None:
    assert {container.given["image"] for container in in_kubernetes().values()} == {"baton"}
    component = yaml.safe_load((KUBERNETES / "image" / "kustomization.yaml").read_text())
    assert [image["name"] for image in component["images"]] == ["baton"]
    assert component["images"][0]["newTag"] == distribution("baton-stream").version
    assert len({container.given["image"] for container in in_cloud_run().values()}) == 1
    assert len({container.given["image"] for container in in_compose().values()}) == 1


def test_kustomizations_name_all_files() -> None:
    for folder in ("migrate", "run"):
        given = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
        assert set(given["resources"]) == {p.name for p in (KUBERNETES / folder).glob("*.yaml")} - {
            "kustomization.yaml"
        }
        assert given["components"] == ["../image"]
        assert given["namespace"] == "baton"


@pytest.mark.parametrize("folder", ["migrate", "run"])
def test_kustomize_renders_them(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: the kustomizations were not rendered.")
    command = [kubectl, "kustomize", str(KUBERNETES / folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    for document in yaml.safe_load_all(rendered):
        kubernetes_validate.validate(document, KUBERNETES_VERSIONS[-1], strict=True)
    assert "image: baton\n" not in rendered


def test_selectors_find_their_pods() -> None:
    found = resources(KUBERNETES)
    labels = [labels_of(document) for document in found.values() if "template" in document.get("spec", {})]
    for name, document in found.items():
        selector = document.get("spec", {}).get("selector")
        if selector is not None:
            wanted = selector.get("matchLabels", selector).items()
            assert [own for own in labels if wanted <= own.items()], name
    (scaler,) = (document for document in found.values() if document["kind"] == "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert any(name.endswith(f":{target['kind']}/{target['name']}") for name in found)


def labels_of(document: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = document["spec"]["template"]["metadata"]["labels"]
    return labels


@each(list(in_kubernetes().values()))
def test_pods_get_no_service_variables_and_no_extra_privileges(container: Container) -> None:
    # Otherwise a Service called `baton` sets BATON_PORT=tcp://…
    assert container.around["enableServiceLinks"] is False
    assert container.around["automountServiceAccountToken"] is False
    assert container.around["securityContext"]["runAsNonRoot"] is True
    assert f"USER {container.around['securityContext']['runAsUser']}:" in DOCKERFILE
    assert container.given["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_compose_publishes_ports_on_loopback_only() -> None:
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_scalers_and_the_page_name_existing_metrics() -> None:
    scalers = [d for d in documents(KUBERNETES).values() if d["kind"] == "HorizontalPodAutoscaler"]
    asked = [m["pods"]["metric"]["name"] for d in scalers for m in d["spec"]["metrics"] if m["type"] == "Pods"]
    not_metrics = {"baton_app", "baton_serve", "baton_work", "baton_migrate"}
    named = set(re.findall(r"\bbaton_\w+", f"{asked} {PAGE}")) - not_metrics
    assert asked
    assert named <= metric_names()


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    services = compose()["services"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    provisioning = PROJECT / mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "baton.yaml").read_text())["providers"]
    assert [p.name for p in (PROJECT / mounts[provider["options"]["path"]]).iterdir()] == ["baton.json"]
    dashboard = json.loads((DEPLOY / "grafana" / "baton.json").read_text())
    (chosen,) = dashboard["templating"]["list"]
    assert (chosen["type"], chosen["query"]) == ("datasource", source["type"])
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    assert {name for job in scraped for config in job["dns_sd_configs"] for name in config["names"]} <= services.keys()


def test_the_image_uses_the_same_uv_as_the_makefile() -> None:
    (version,) = re.findall(r"uv==([\d.]+)", DOCKERFILE)
    assert f"uv=={version}" in (PROJECT / "Makefile").read_text()


def test_the_page_names_existing_settings_and_files() -> None:
    assert set(re.findall(r"\bBATON_[A-Z_]+[A-Z]\b", PAGE)) <= variables() | shell_variables()
    for path in re.findall(r"\bdeploy/[\w./-]+\w", PAGE):
        assert (PROJECT / path).exists(), path


def shell_variables() -> set[str]:
    """Return the variables that compose.yaml reads from the shell for itself."""
    return set(re.findall(r"\$\{(BATON_[A-Z_]+)", (PROJECT / "compose.yaml").read_text()))


def test_the_pages_timeouts_are_the_defaults() -> None:
    defaults = Settings()
    rows = re.findall(r"^\| `BATON_([A-Z_]+)` \| ([\d.]+) (?:s|ms) ", PAGE, re.MULTILINE)
    assert len(rows) >= 8
    for name, value in rows:
        assert getattr(defaults, name.lower()) == float(value), name
