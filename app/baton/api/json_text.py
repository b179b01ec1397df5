"""JSON that is stored as it was written: numbers keep their digits, and objects the order of their names.

Pure functions. Encoding again would change a number such as 1.10 or 12345678901234567890.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import InvalidRequest
from ..events import escape_line_ends, read_json

# Strings are taken whole, so that brackets and commas in them do not count. No backtracking: hostile text is as fast.
_MARKS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)
_SPACE: Final = b" \t\n\r"
# In valid JSON, line ends are between values only: in a string they are escaped.
_TO_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


def messages(json: bytes) -> list[bytes]:
    """Return the elements of an array, or the one other value, each as written, on one line.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        read_json(json)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    line = escape_line_ends(json.strip(_SPACE).translate(_TO_ONE_LINE))
    return _elements(line) if line.startswith(b"[") else [line]


def _elements(array: bytes) -> list[bytes]:
    """Split an array, which is valid JSON, at the commas of its top level."""
    found: list[bytes] = []
    depth, start = 0, 1
    for mark in _MARKS.finditer(array):
        byte = array[mark.start()]
        if byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
        elif byte == ord(",") and depth == 1:
            found.append(array[start : mark.start()].strip(_SPACE))
            start = mark.end()
    last = array[start:-1].strip(_SPACE)
    return [*found, last] if found or last else []
