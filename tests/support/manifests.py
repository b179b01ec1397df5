"""The containers of deploy/ and compose.yaml, with their commands and environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CLOUD_RUN = DEPLOY / "cloudrun"


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs Baton, and its pod template, revision or service."""

    where: str
    given: Mapping[str, Any]
    around: Mapping[str, Any]

    @property
    def command(self) -> str:
        (command,) = self.given.get("args") or self.given["command"]
        return str(command)

    @property
    def environment(self) -> dict[str, str | None]:
        """Return its variables. None stands for a value from elsewhere, such as a secret."""
        env = self.given.get("env", [])
        return {item["name"]: item.get("value") for item in env} if env else dict(self.given.get("environment", {}))

    @property
    def probes(self) -> dict[str, Mapping[str, Any]]:
        return {name: self.given[name]["httpGet"] for name in self.given if name.endswith("Probe")}


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """Return all documents of a folder, by file, kind and name."""
    return {
        f"{path.relative_to(folder)}:{document['kind']}/{document.get('metadata', {}).get('name')}": document
        for path in sorted(folder.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    }


def resources(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the documents for the platform, without those for kustomize."""
    kustomize = ("Kustomization", "Component")
    return {name: document for name, document in documents(folder).items() if document["kind"] not in kustomize}


def compose() -> dict[str, Any]:
    """Return compose.yaml with its anchors resolved."""
    found: dict[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    return found


def in_kubernetes() -> dict[str, Container]:
    return {c.command: c for name, document in resources(KUBERNETES).items() for c in _containers(name, document)}


def in_cloud_run() -> dict[str, Container]:
    return {c.command: c for name, document in resources(CLOUD_RUN).items() for c in _containers(name, document)}


def in_compose() -> dict[str, Container]:
    services = compose()["services"]
    found = [Container(f"compose:{name}", given, given) for name, given in services.items() if given.get("build")]
    return {container.command: container for container in found}


def everywhere() -> list[Container]:
    return [container for found in (in_compose(), in_kubernetes(), in_cloud_run()) for container in found.values()]


def _containers(where: str, node: Any) -> Iterator[Container]:
    """Yield the containers at any depth of the templates."""
    if isinstance(node, Mapping):
        for given in node.get("containers", ()):
            yield Container(where, given, node)
        for value in node.values():
            yield from _containers(where, value)
