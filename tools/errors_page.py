"""Generate docs/errors.md from the codes: `python -m tools.errors_page`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from baton.codes import ENDS, REFUSALS, Code

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"

HEAD = """\
# Errors

Every error has a `code`, which never changes its meaning. Programs branch on it; the rest is for people.

A refused request gets `application/problem+json` (RFC 9457):

```json
{
  "type": "/errors#cursor_beyond_tail",
  "title": "The cursor lies beyond the end of the log",
  "status": 409,
  "detail": "The stream has 12 events so far, and the cursor is 94. Start again without a cursor.",
  "code": "cursor_beyond_tail",
  "request_id": "0b8f6c6f2c0f4f1d9a5b7e3c1d2f4a60"
}
```

- `type` is the path of this page on the pod, including the prefix that Baton is mounted under.
- `request_id` is also in the header `X-Request-Id` of every response, and in each line of the pod's log that belongs to
  the request. A client may choose it: pods keep an `X-Request-Id` of 1 to 128 of `A-Z a-z 0-9 . _ : -`, and replace any
  other.

The routes for OpenAI's SDKs have the code in `error.code`, in OpenAI's form, and those for Anthropic's in
`error.details.error_code`, in Anthropic's. The SDKs have the request's id as `request_id` of their exceptions. An AI
SDK stream ends with an `error` chunk: the message, with the code in parentheses.

A stream that fails says why in its terminal event, in `GET /v1/streams/{id}`, and in the error format of its dialect:
`{"code": …, "message": …}`. A generator may end a stream with codes of its own; its author documents them.
Chat Completions without `stream` map the failure of the stream to a status: 400 for `invalid_input` and
`provider_invalid_request`, 409 for `cancelled`, 429 for `provider_rate_limited`, otherwise 500.

`python -m tools.errors_page` generates this page from `app/baton/codes.py`, and a test compares the two. Pods serve it
under `/errors`.
"""


def page() -> str:
    return HEAD + "\n## Refused requests\n" + _sections(REFUSALS) + "\n## Streams that end early\n" + _sections(ENDS)


def _sections(codes: Iterable[Code]) -> str:
    return "".join(map(_section, codes))


def _section(code: Code) -> str:
    status = "" if code.status is None else f" ({code.status})"
    explained = _wrapped(f"{code.title}{status}. {code.happened}")
    client, operator = _wrapped(f"- The client: {code.client}"), _wrapped(f"- The operator: {code.operator}")
    return f"\n### {code.code}\n\n{explained}\n\n{client}\n{operator}\n"


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


if __name__ == "__main__":
    PAGE.write_text(page())
