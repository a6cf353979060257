"""What the ledger may keep and show of the calls of a tool: a policy for each argument, compiled for the call path.

A policy is JSON, at the tool and, as its default, at the data source:

    {"arguments": {"customer_id": "clear", "/address/*/street": "dropped"}, "otherwise": "encrypted",
     "subject": {"argument": "customer_id", "kind": "customer"}, "results_kb": 16}

An argument is named by its top-level name, or by a JSON pointer (RFC 6901) in which `*` stands for every name or place.
The most specific rule wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from django.conf import settings
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from audit.datakeys import Subject
from audit.subjects import subject_hash as subject_hash
from tools import exact

Treatment = Literal["clear", "last4", "domain", "length", "encrypted", "dropped"]

# Treatment → what it means, for forms and documentation.
TREATMENTS: Mapping[str, str] = {
    "clear": "stands in the record as it is",
    "last4": "the last four characters stand in the record",
    "domain": "of an e-mail address, what follows the @ stands in the record",
    "length": "how long it is stands in the record",
    "encrypted": "only in the encrypted part",
    "dropped": "not kept; the commitment covers it",
}
_HIDDEN = "•••"
_MOST_KB = 256
_LARGEST_SHOWN = 16 * 1024
_DEEPEST = 32
_EVERY = "*"
_ABSENT = object()


def _checked(name: str) -> str:
    if len(_steps(name)) > _DEEPEST // 2:
        raise ValueError("The pointer is too long.")
    return name


Argument = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_checked)]


class SubjectRule(BaseModel):
    """Whose data a call is about: the value of an argument, and what such subjects are called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    argument: Argument
    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class Policy(BaseModel):
    """As it is written down. What is not said is left to the data source, and then to the site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arguments: dict[Argument, Treatment] = Field(default_factory=dict, max_length=200)
    otherwise: Treatment | None = None
    subject: SubjectRule | None = None
    results_kb: Annotated[int, Field(ge=0, le=_MOST_KB, strict=True)] | None = None


class PolicyRefused(ValueError):
    """The policy cannot be used; the message says why."""


def checked(policy: Any) -> dict[str, Any]:
    """The policy as it is stored, without what it does not say. Raises PolicyRefused."""
    try:
        found = Policy.model_validate(policy if policy is not None else {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise PolicyRefused(f"{place}: {said}." if place else f"{said}.") from error
    if found.subject is not None and found.subject.kind in ("user", "none"):
        raise PolicyRefused("subject.kind: `user` and `none` are the ledger's own words; choose another.")
    return found.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def effective(*policies: Mapping[str, Any] | None) -> Policy:
    """What holds under these policies, the strongest first, and under the site's settings."""
    site: dict[str, Any] = {"otherwise": settings.RECORDED_ARGUMENTS, "results_kb": settings.RECORDED_RESULTS_KB}
    merged: dict[str, Any] = {}
    for each in reversed((*policies, site)):
        said = dict(each or {})
        arguments = {**merged.get("arguments", {}), **said.pop("arguments", {})}
        merged = {**merged, **said, "arguments": arguments}
    return Policy.model_validate(merged)


def below(name: str, policy: Policy) -> Policy:
    """The same for calls that have the arguments below a name, as requests for prompts do."""

    def moved(argument: str) -> str:
        pointer = argument if argument.startswith("/") else f"/{argument.replace('~', '~0').replace('/', '~1')}"
        return f"/{name}{pointer}"

    subject = policy.subject and policy.subject.model_copy(update={"argument": moved(policy.subject.argument)})
    arguments = {moved(argument): how for argument, how in policy.arguments.items()}
    return policy.model_copy(update={"arguments": arguments, "subject": subject})


# --- Compiled ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    how: Treatment | None = None
    children: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """A policy that differs from what is recorded anyway. Its state never changes."""

    rules: _Node
    otherwise: Treatment
    keeps_result: int
    subject: tuple[tuple[str, ...], str] | None
    # The keyed hash of a value: kind and value → what stands in the table of keys.
    hashed: Callable[[str, str], str]

    def told(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the records of a call say of its arguments: fields of an `audit.entry.Entry`."""
        facts: dict[str, Any] = {"keeps_result": self.keeps_result} if self.keeps_result else {}
        shown, kept = _walked(arguments, (self.rules,), self.otherwise, 0)
        if shown is not _ABSENT:
            facts["shown"] = _bounded(exact.written(shown))
        if kept is not arguments:
            facts["some_arguments"] = b"" if kept is _ABSENT else exact.written(kept)
        if self.subject and (value := _at(arguments, self.subject[0])) is not None:
            facts["subject"] = Subject(self.subject[1], self.hashed(self.subject[1], value))
        return facts


def compiled(policy: Policy, key: bytes) -> Recording | None:
    """The policy for the call path; None when it keeps everything encrypted and shows nothing, as without one.

    `key` is that of the subjects' hashes.
    """
    if not policy.arguments and policy.otherwise == "encrypted" and not policy.results_kb and policy.subject is None:
        return None
    rules = _Node()
    for name, how in policy.arguments.items():
        node = rules
        for step in _steps(name):
            node = node.children.setdefault(step, _Node())
        node.how = how
    subject = (_steps(policy.subject.argument), policy.subject.kind) if policy.subject else None
    return Recording(
        rules,
        policy.otherwise or "encrypted",
        (policy.results_kb or 0) * 1024,
        subject,
        lambda kind, value: subject_hash(key, kind, value),
    )


def _steps(name: str) -> tuple[str, ...]:
    if not name.startswith("/"):
        return (name,)
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in name[1:].split("/"))


def _at(value: Any, steps: tuple[str, ...]) -> str | None:
    """The text or whole number there, as text."""
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


# --- Applied ----------------------------------------------------------------------------------------------------------


def _walked(value: Any, nodes: tuple[_Node, ...], how: Treatment, depth: int) -> tuple[Any, Any]:
    """(what is shown, what is kept) of a value, each `_ABSENT` when that is nothing.

    `nodes` are the rules that lead here, those that say a name before those that say `*`.
    """
    if not isinstance(value, (dict, list)) or depth > _DEEPEST or not (how in _MASKS or _reach_further(nodes)):
        return _treated(value, how)
    shown: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for name, each in _items(value):
        below = tuple(found for node in nodes for step in (name, _EVERY) if (found := node.children.get(step)))
        treatment = next((node.how for node in below if node.how), how)
        shown[name], kept[name] = _walked(each, below, treatment, depth + 1)
    whole = all(kept[name] is each for name, each in _items(value))
    return _rebuilt(value, shown), value if whole else _rebuilt(value, kept)


def _reach_further(nodes: tuple[_Node, ...]) -> bool:
    return any(node.children for node in nodes)


def _items(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    return iter(value.items()) if isinstance(value, dict) else ((str(place), each) for place, each in enumerate(value))


def _rebuilt(value: dict[str, Any] | list[Any], parts: dict[str, Any]) -> Any:
    """Of the same shape, with what there is of the parts; in a list, null stands for what there is not."""
    if value and all(each is _ABSENT for each in parts.values()):
        return _ABSENT
    if isinstance(value, dict):
        return {name: each for name, each in parts.items() if each is not _ABSENT}
    return [None if each is _ABSENT else each for each in parts.values()]


def _treated(value: Any, how: Treatment) -> tuple[Any, Any]:
    if how == "dropped":
        return _ABSENT, _ABSENT
    if how == "encrypted":
        return _ABSENT, value
    return (value if how == "clear" else _masked(value, how)), value


def _masked(value: Any, how: Treatment) -> str:
    if value is None or isinstance(value, (bool, dict, list)):
        return _HIDDEN
    return _MASKS[how](str(value))


_MASKS: Mapping[str, Callable[[str], str]] = {
    "last4": lambda text: _HIDDEN + text[-4:] if len(text) >= 8 else _HIDDEN,
    "domain": lambda text: f"{_HIDDEN}@{text.rpartition('@')[2]}" if "@" in text else _HIDDEN,
    "length": lambda text: f"{_HIDDEN} ({len(text)} characters)",
}


def _bounded(shown: bytes) -> str:
    if len(shown) <= _LARGEST_SHOWN:
        return shown.decode()
    return orjson.dumps({"…": f"{len(shown)} bytes, too large to be shown"}).decode()
