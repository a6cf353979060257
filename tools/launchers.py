"""Which programs may run as MCP servers: named by the operator in `MCP_LAUNCHERS`, chosen by name everywhere else.

Light on purpose, since settings read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_KNOWN = ("command", "env", "description", "memory_mb", "open_files")


@dataclass(frozen=True, slots=True)
class Launcher:
    """A program with its arguments and environment. `memory_mb` limits each of its processes; None does not."""

    command: tuple[str, ...]
    description: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory_mb: int | None = 1024
    open_files: int = 256


def read(value: Any) -> dict[str, Launcher]:
    """Name → launcher from the JSON object of `MCP_LAUNCHERS`. Raises ValueError, which repeats no value."""
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object: name → launcher.")
    return {name: _launcher(name, given) for name, given in value.items()}


def _launcher(name: str, given: Any) -> Launcher:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} cannot name a launcher: use 1 to 48 lower-case letters, digits, - and _.")
    if not isinstance(given, dict):
        raise ValueError(f"the launcher {name} must be a JSON object with a command.")
    if unknown := sorted(set(given) - set(_KNOWN)):
        raise ValueError(f"the launcher {name} has {unknown[0][:60]!r}, which is none of {', '.join(_KNOWN)}.")
    return Launcher(
        command=_command(name, given.get("command")),
        description=_text(name, given.get("description", "")),
        environment=_environment(name, given.get("env", {})),
        memory_mb=None if given.get("memory_mb", 1024) is None else _number(name, given, "memory_mb", 1024, 16),
        open_files=_number(name, given, "open_files", 256, 16),
    )


def _command(name: str, value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(word, str) and "\0" not in word for word in value)
    ):
        raise ValueError(f"the command of the launcher {name} must be a list of texts: the program and its arguments.")
    if not value[0]:
        raise ValueError(f"the command of the launcher {name} has no program.")
    return tuple(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the description of the launcher {name} must be a text.")
    return value


def _environment(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"env of the launcher {name} must be a JSON object: variable → text.")
    for variable, content in value.items():
        if not _VARIABLE.fullmatch(variable) or not isinstance(content, str) or "\0" in content:
            raise ValueError(f"env of the launcher {name}: {variable[:60]!r} is no variable with a text.")
    return value


def _number(name: str, given: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = given.get(key, default)
    if type(value) is not int or not least <= value <= 1_048_576:
        raise ValueError(f"{key} of the launcher {name} must be a whole number from {least} to 1048576.")
    return value
