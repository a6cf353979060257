"""Reads the process environment: the one place that knows where a setting's value comes from.

Every reader takes the name, what the setting is for, and a default. It also accepts `NAME_FILE`, a path whose content
is the value, so that secrets can be mounted as files. A wrong value raises `ImproperlyConfigured` with a sentence that
names the variable. The readers register what they read, so that the documentation can be checked against the code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from mcpsite.datadir import default_path

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Variable:
    """One documented environment variable; `default` is shown to people, so it never holds a secret."""

    name: str
    help: str
    default: str


REGISTRY: dict[str, Variable] = {}


def load_file(path: Path) -> None:
    """Read `NAME=value` lines of `path` into the environment; a variable that is already set wins."""
    load_dotenv(path, override=False)


def _raw(name: str, help: str, default: object) -> str | None:
    REGISTRY[name] = Variable(name, help, "" if default is None else str(default))
    if name in os.environ and f"{name}_FILE" in os.environ:
        raise ImproperlyConfigured(f"{name} and {name}_FILE are both set: keep one of them.")
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ImproperlyConfigured(f"{name}_FILE names {path!r}, which cannot be read: {error}.") from error
    value = os.environ.get(name)
    return value.strip() if value and value.strip() else None


def _parse(name: str, value: str, parse: Callable[[str], T], wanted: str) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must be {wanted}, not {value[:80]!r}.") from error


@overload
def text(name: str, help: str, default: str) -> str: ...
@overload
def text(name: str, help: str, default: None = None) -> str | None: ...
def text(name: str, help: str, default: str | None = None) -> str | None:
    """The value as it stands, or `default`."""
    value = _raw(name, help, default)
    return default if value is None else value


def secret(name: str, help: str) -> str | None:
    """A secret value, or None when it is not set. Its value never appears in an error."""
    return _raw(name, help, None)


def late_secret(name: str, help: str) -> Callable[[], str | None]:
    """A secret that is read when it is asked for, and never by processes that do not ask."""
    REGISTRY[name] = Variable(name, help, "")
    return lambda: secret(name, help)


def secret_path(name: str) -> Path | None:
    """The file whose content is the secret; None when there is none, or the variable itself has it."""
    path = os.environ.get(f"{name}_FILE", "").strip()
    return Path(path) if path else None


def flag(name: str, help: str, default: bool = False) -> bool:
    """`1/true/yes/on` or `0/false/no/off`."""
    value = _raw(name, help, "true" if default else "false")
    if value is None:
        return default
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.lower() not in words:
        raise ImproperlyConfigured(f"{name} must be true or false, not {value[:80]!r}.")
    return words[value.lower()]


def integer(name: str, help: str, default: int, *, minimum: int, maximum: int) -> int:
    """A whole number within `minimum`..`maximum`."""
    value = _raw(name, help, default)
    number = default if value is None else _parse(name, value, int, f"a whole number from {minimum} to {maximum}")
    if not minimum <= number <= maximum:
        raise ImproperlyConfigured(f"{name} must be a whole number from {minimum} to {maximum}, not {number}.")
    return number


def words(name: str, help: str, default: tuple[str, ...] = ()) -> list[str]:
    """A comma-separated list; empty entries are dropped."""
    value = _raw(name, help, ",".join(default))
    return list(default) if value is None else [word.strip() for word in value.split(",") if word.strip()]


def choice(name: str, help: str, default: str, options: tuple[str, ...]) -> str:
    """One of `options`, compared without case."""
    value = _raw(name, help, default)
    found = default if value is None else next((o for o in options if o.lower() == value.lower()), None)
    if found is None:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(options)}, not {value!r}.")
    return found


def url(name: str, help: str, default: str | None = None, *, schemes: tuple[str, ...]) -> str | None:
    """A URL with one of `schemes`; the value is not repeated in errors, since it may hold a password."""
    value = _raw(name, help, default)
    if value is None:
        return default
    try:
        scheme = urlsplit(value).scheme
    except ValueError:
        scheme = ""
    if scheme not in schemes:
        raise ImproperlyConfigured(f"{name} must be a URL that starts with {' or '.join(s + '://' for s in schemes)}.")
    return value


def structure(name: str, help: str, default: str, *, parse: Callable[[Any], T]) -> T:
    """JSON, as `parse` makes it of the decoded value. What `parse` says with ValueError is told, not the value."""
    value = _raw(name, help, default)
    try:
        return parse(json.loads(default if value is None else value))
    except json.JSONDecodeError as error:
        raise ImproperlyConfigured(f"{name} must be JSON: {error}.") from error
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from error


def is_set(name: str) -> bool:
    """Whether the variable (or its `_FILE` twin) has a value."""
    return bool(os.environ.get(name, "").strip() or os.environ.get(f"{name}_FILE", "").strip())


def for_child(**values: str) -> dict[str, str]:
    """The environment for a child process: ours plus `values`."""
    return {**os.environ, **values}


def without(*names: str) -> dict[str, str]:
    """The environment for a child process that is not to have these variables, nor their `_FILE` twins."""
    hidden = {*names, *(f"{name}_FILE" for name in names)}
    return {name: value for name, value in os.environ.items() if name not in hidden}


def data_dir() -> Path:
    """The data directory of this process."""
    fallback = default_path()
    help = "Data directory of an installation that runs its own engines: their files, the generated secrets."
    return Path(text("MCPSITE_DATA", help, str(fallback))).expanduser().absolute()


def override(name: str, value: str) -> None:
    """Give a variable the value of a command-line option, before the settings are read."""
    os.environ[name] = value
    os.environ.pop(f"{name}_FILE", None)
