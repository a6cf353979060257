"""What a scripted model says: steps that an administrator wrote, with values filled in from earlier results.

A script is YAML: a list of steps, each `call` with `with`, or `say`. `{{ … }}` stands for a value: `input` (the task),
`email` (the first e-mail address in it), `word:SO-` (its first word that begins so), or a path into the last result of
a tool, such as `find_customer.rows.0.id`. Where a value is missing, `otherwise` is said instead, and the run ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

_FORM = re.compile(r"\{\{\s*([^{}]{1,200}?)\s*\}\}")
_EMAIL = re.compile(r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_EDGES = ".,;:!?()[]\"'<>"
_MOST_STEPS = 50


class ScriptError(ValueError):
    """The script cannot be read or followed; the text is a sentence for its author."""

    code = "script_error"


class MissingValue(ScriptError):
    """A value that a step needs is not there."""


@dataclass(frozen=True, slots=True)
class Say:
    """The model's last word."""

    text: str
    otherwise: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A call of a tool."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    otherwise: str | None = None


Step = Say | Ask


def parse(text: str) -> list[Step]:
    """The steps. Raises ScriptError."""
    try:
        endless = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        rows = None if endless else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ScriptError(f"This is not YAML: {error}") from error
    if endless:
        raise ScriptError("A script has no aliases (`*name`): they could make it endless.")
    if not isinstance(rows, list) or not rows:
        raise ScriptError("A script is a list of steps: each has `call` or `say`.")
    if len(rows) > _MOST_STEPS:
        raise ScriptError(f"A script has at most {_MOST_STEPS} steps.")
    steps = [_step(row, number) for number, row in enumerate(rows, 1)]
    if any(isinstance(step, Say) for step in steps[:-1]) or not isinstance(steps[-1], Say):
        raise ScriptError("The last step, and no other, says something: `say`.")
    return steps


def _step(row: Any, number: int) -> Step:
    if not isinstance(row, dict):
        raise ScriptError(f"Step {number} is not a mapping with `call` or `say`.")
    unknown = set(row) - ({"say", "otherwise"} if "say" in row else {"call", "with", "otherwise"})
    if unknown:
        raise ScriptError(f"Step {number} has {', '.join(sorted(map(str, unknown)))}, which means nothing there.")
    otherwise = row.get("otherwise")
    if not isinstance(otherwise, str | None):
        raise ScriptError(f"Step {number}: `otherwise` is a text.")
    if isinstance(row.get("say"), str):
        return Say(row["say"], otherwise)
    tool, arguments = row.get("call"), row.get("with") or {}
    if not isinstance(tool, str) or not tool or not isinstance(arguments, dict):
        raise ScriptError(f"Step {number} needs `say` with a text, or `call` with a tool's name and `with` a mapping.")
    return Ask(tool, arguments, otherwise)


def filled(value: Any, task: str, results: Mapping[str, Any]) -> Any:
    """The value with its `{{ … }}` replaced; a text that is nothing else becomes the value itself.

    Raises MissingValue.
    """
    if isinstance(value, dict):
        return {key: filled(inner, task, results) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, task, results) for inner in value]
    if not isinstance(value, str):
        return value
    if whole := _FORM.fullmatch(value.strip()):
        return _value(whole[1], task, results)
    return _FORM.sub(lambda found: as_text(_value(found[1], task, results)), value)


def _value(path: str, task: str, results: Mapping[str, Any]) -> Any:
    if path == "input":
        return task
    if path == "email":
        return _present(next(iter(_EMAIL.findall(task)), None), "e-mail address in the task")
    if path.startswith("word:"):
        words = (word.strip(_EDGES) for word in task.split())
        return _present(next((word for word in words if word.startswith(path[5:])), None), f"{path[5:]}… in the task")
    found: Any = results
    for part in path.split("."):
        found = _inside(found, part)
    return _present(found, path)


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return None


def _present(value: Any, what: str) -> Any:
    if value is None:
        raise MissingValue(f"There is no {what}.")
    return value


def as_text(value: Any) -> str:
    """A value as it stands in a sentence."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
