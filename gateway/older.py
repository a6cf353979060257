"""What a client of an older revision cannot read in tools and results, said in another way; all else stays as it is.

Before 2026-07-28, `structuredContent` is an object and `outputSchema` describes one; a client that checks what it gets
would drop the whole list, or the result (MCP 2025-11-25, schema).
"""

from __future__ import annotations

import re
from typing import Any

from tools import exact

# Within texts, quotation marks are escaped.
_ODD = re.compile(rb'"structuredContent":[^{]')


def definition(text: bytes) -> bytes:
    """The tool's definition, without an output schema that does not describe an object."""
    if b'"outputSchema"' not in text:
        return text
    found = exact.taken(text)
    schema = found.get("outputSchema", {"type": "object"})
    if isinstance(schema, dict) and schema.get("type") == "object":
        return text
    return exact.written({name: value for name, value in found.items() if name != "outputSchema"})


def result(text: bytes) -> bytes:
    """The result of a call; what is structured and no object stands in a text block, if nothing else does."""
    if _ODD.search(text) is None:
        return text
    found: dict[str, Any] = exact.taken(text)
    structured = found.get("structuredContent", {})
    if isinstance(structured, dict):
        return text
    del found["structuredContent"]
    if not found.get("content"):
        found["content"] = [{"type": "text", "text": exact.written(structured).decode()}]
    return exact.written(found)
