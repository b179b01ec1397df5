"""The page that the `type` of each problem links to: what happened, and what to do. It is made once."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from html import escape
from typing import Final

from ..codes import ENDS, REFUSALS, Code
from ..version import __version__

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6474; --paper: #fbfbfd; --card: #fff; --line: #e1e4ea;
  --mark: #2456c9; --tint: #eef1f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa3b2; --paper: #12151b; --card: #191d25;
  --line: #2b313c; --mark: #8ab0ff; --tint: #232935; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 3rem 1.25rem 6rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 1rem; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: 0 0 1rem; }
a { color: var(--mark); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--tint);
  border-radius: .25rem; padding: .1em .3em; overflow-wrap: anywhere; }
h3 code { background: none; padding: 0; }
nav { display: flex; flex-wrap: wrap; gap: .35rem .9rem; font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.25rem;
  margin: 0 0 1rem; scroll-margin-top: 1rem; }
section:target { border-color: var(--mark); box-shadow: 0 0 0 1px var(--mark); }
.status { float: right; color: var(--soft); font-variant-numeric: tabular-nums; }
dl { margin: .75rem 0 0; display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
"""

_HEAD: Final = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Baton errors</title>
<style>{_STYLE}</style>
<h1>What Baton&rsquo;s errors mean</h1>
<p>Every error has a <code>code</code>, whose meaning never changes, a sentence in <code>detail</code>, and a
<code>request_id</code>, which the pod&rsquo;s log has too.</p>
"""

_PARTS: Final = (
    ("Refused requests", REFUSALS),
    ("Streams that end early", ENDS),
)


def page() -> str:
    """Return the page."""
    index = "".join(f'<a href="#{code.code}">{code.code}</a>\n' for _, codes in _PARTS for code in codes)
    parts = "".join(f"<h2>{title}</h2>\n{_sections(codes)}" for title, codes in _PARTS)
    return f"{_HEAD}<nav>\n{index}</nav>\n{parts}<p>Baton {escape(__version__)}</p>\n</html>\n"


def content_security_policy() -> str:
    """Return a policy that allows only the page's own style."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; frame-ancestors 'none'"


def _sections(codes: Iterable[Code]) -> str:
    return "".join(map(_section, codes))


def _section(code: Code) -> str:
    status = "" if code.status is None else f'<span class="status">{code.status}</span>'
    return (
        f'<section id="{code.code}">\n{status}<h3><a href="#{code.code}"><code>{code.code}</code></a></h3>\n'
        f"<strong>{_text(code.title)}.</strong> {_text(code.happened)}\n"
        f"<dl><dt>The client</dt><dd>{_text(code.client)}</dd>\n"
        f"<dt>The operator</dt><dd>{_text(code.operator)}</dd></dl>\n</section>\n"
    )


def _text(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
