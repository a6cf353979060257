"""URI templates of resources (RFC 6570), as far as a URI has to be recognised: could this template have made it?

The patterns match in linear time, whatever an upstream calls a template: a value never takes the character that follows
it, and does not give back what it took.
"""

from __future__ import annotations

import re

_LONGEST = 1024
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]*")
_EXPRESSION = re.compile(r"\{([+#./;?&]?)([A-Za-z0-9_%.,*:]+)\}")
_QUERY = r"(?:[?&][^#]*+)?"


def is_uri(text: str) -> bool:
    """Whether it can be the URI of a resource: a scheme, visible ASCII characters, not endless."""
    return len(text) <= _LONGEST and _URI.fullmatch(text) is not None


def pattern_of(template: str) -> re.Pattern[str]:
    """What URIs of the template look like: `{x}` is one segment, `{+x}` and `{/x*}` go on. Raises ValueError."""
    found = list(_EXPRESSION.finditer(template))
    literals = re.split(r"\{[^{}]*\}", template)
    if not is_uri(template) or not found or len(literals) != len(found) + 1 or "{" in "".join(literals):
        raise ValueError("It is no URI template (RFC 6570).")
    if not all(literals[1:-1]):
        raise ValueError("Two placeholders of the URI template follow each other directly.")
    if sum(_goes_on(match) for match in found) > 1:
        raise ValueError("More than one placeholder of the URI template can be of several segments.")
    parts = [re.escape(literals[0])]
    for match, literal in zip(found, literals[1:], strict=True):
        parts += [_value(match, literal[:1]), re.escape(literal)]
    return re.compile("".join(parts))


def shape_of(template: str) -> str:
    """The template without what its placeholders are called."""
    return re.sub(r"\{[^{}]*\}", "{}", template)


def literal_length(template: str) -> int:
    """How much of the template is fixed before its first placeholder: the longer, the closer it describes a URI."""
    return template.find("{")


def _goes_on(match: re.Match[str]) -> bool:
    return match[1] == "+" or "*" in match[2]


def _value(match: re.Match[str], following: str) -> str:
    operator = match[1]
    if operator in ("?", "&"):
        return _QUERY
    value = ".+" if _goes_on(match) else f"[^/?#{re.escape(following)}]++"
    return value if operator in ("", "+") else f"(?:{re.escape(operator)}{value})?"
