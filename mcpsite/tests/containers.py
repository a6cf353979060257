"""Reads what describes the containers, as Docker would: the Dockerfile, what it copies, and docker-compose.yml."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
# What of a working copy is not there in a checkout, and large: Docker would look at it, and leave it out.
_NOT_OURS = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def compose() -> dict[str, Any]:
    """docker-compose.yml, before anything is put into it."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def variables() -> dict[str, str]:
    """Variable → the operator and the words behind it, of every `${…}` in docker-compose.yml."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    return {name: f"{operator}{words}" for name, operator, words in _VARIABLE.findall(text)}


def filled(value: Any, given: Mapping[str, str]) -> Any:
    """The value with the variables put in (Compose specification, "Interpolation"). Raises KeyError: the sentence."""
    if isinstance(value, dict):
        return {name: filled(inner, given) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, given) for inner in value]
    return _VARIABLE.sub(lambda found: _filled(found, given), value) if isinstance(value, str) else value


def _filled(found: re.Match[str], given: Mapping[str, str]) -> str:
    name, operator, words = found.groups()
    if given.get(name):
        return given[name]
    if operator == "?":
        raise KeyError(words)
    return words or ""


def environment(service: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """What a container of the service finds: a variable without a value comes from outside, or is not there."""
    found = {}
    for name, value in service.get("environment", {}).items():
        if value is None and name in given:
            found[name] = given[name]
        elif value is not None:
            found[name] = str(filled(value, given))
    return found


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments) of the Dockerfile, with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def final_stage() -> list[tuple[str, str]]:
    """The instructions of the image that is run."""
    every = instructions()
    last = max(place for place, (word, _) in enumerate(every) if word == "FROM")
    return every[last:]


def exec_form(word: str, stage: list[tuple[str, str]]) -> list[str]:
    """The command of CMD or HEALTHCHECK, which must be in the exec form."""
    (arguments,) = [rest for name, rest in stage if name == word]
    command: list[str] = json.loads(arguments[arguments.index("[") :])
    return command


def context() -> Iterator[Path]:
    """The files that Docker copies, relative to the root: what .dockerignore lets through (the last match counts)."""
    rules = [
        (line.removeprefix("!"), not line.startswith("!"))
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    for path in sorted(_files(ROOT)):
        if not _is_ignored(path, rules):
            yield path


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if folder != ROOT or path.name not in _NOT_OURS:
                yield from _files(path)
        elif path.is_file():
            yield path.relative_to(ROOT)


def _is_ignored(path: Path, rules: list[tuple[str, bool]]) -> bool:
    """A rule counts for a path and for all that is below it."""
    chain = ["/".join(path.parts[: length + 1]) for length in range(len(path.parts))]
    ignored = False
    for pattern, ignores in rules:
        if any(_matches(part, pattern) for part in chain):
            ignored = ignores
    return ignored


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)
