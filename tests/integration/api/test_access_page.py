"""The code of docs/access.md works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.support.access import TOKEN_KEYS, guarded_pod, make_key
from tests.support.cluster import Cluster, echo
from tests.support.processes import BATON, environment, finished

from baton.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "access.md"


def code_of(heading: str, language: str) -> str:
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    match = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


async def test_the_key_commands_work(cluster: Cluster, tmp_path: Path) -> None:
    await make_key(cluster, name="other")
    pod = await guarded_pod(cluster)
    env = environment(BATON_URL=pod.url, BATON_DATABASE_URL=cluster.dsn)
    env["PATH"] = f"{BATON.parent}:{env['PATH']}"
    code, out, err = await finished("-ec", code_of("API keys", "sh"), env=env, command=Path("/bin/sh"), cwd=tmp_path)
    assert code == 0, err
    assert '"status":"queued"' in out
    assert "Revoked 'web'" in out


async def test_a_page_gets_a_token_with_the_answer_view(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    await cluster.worker({"replay": echo})
    monkeypatch.setenv("BATON_URL", pod.url)
    monkeypatch.setenv("BATON_KEY", key)
    names: dict[str, object] = {}
    exec(code_of("Stream tokens", "python"), names)
    page = await names["ask"](["Hello"])  # type: ignore[operator]
    script = code_of("Stream tokens", "js")
    (template,) = re.findall(r"EventSource\(`(.*)`\)", script)
    path = template.replace("${events_url}", page["events_url"]).replace("${token}", page["token"])
    followed = await cluster.client.get(pod.url + path)
    assert (followed.status_code, "Hello" in followed.text, "usage" in followed.text) == (200, True, False)
    await names["pods"].aclose()  # type: ignore[attr-defined]


def test_the_provider_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in code_of("Identity provider", "sh").splitlines():
        name, _, value = shlex.split(line)[1].partition("=")
        monkeypatch.setenv(name, value)
    loaded = Settings.load(token_keys=TOKEN_KEYS)
    assert (loaded.jwt_tenant_claim, loaded.jwt_scope_claim) == ("org.id", "permissions")
    assert loaded.jwks_url is not None
