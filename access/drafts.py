"""What a role would come to if its form were saved now: the compiler of calls, over grants that are not saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from access.models import Grant
from access.reach import Reach, reach_of_grants
from tools.models import Tool

_WORDS = {Tool.Effect.READ: "read", Tool.Effect.WRITE: "write", Tool.Effect.DESTRUCTIVE: "destroy"}
_KINDS = {"tool": "tool", "prompt": "prompt", "resource": "resource", "template": "resource template"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the list; `state` is `kept`, `new` or `gone`, `before` the saved budget where that differs."""

    reach: Reach
    state: str
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """The list as it would be. `faulty` grants are not complete yet, and do not count."""

    lines: tuple[Line, ...]
    faulty: int = 0

    @property
    def total(self) -> int:
        """How much could be used."""
        return sum(line.state != "gone" for line in self.lines)

    @property
    def sums(self) -> list[tuple[str, str]]:
        """How many of each kind, as `3 tools`, and of the tools what they do: `2 read, 1 write`."""
        left = [line.reach for line in self.lines if line.state != "gone"]
        kinds = [each.kind for each in left]
        effects = [each.callee.effect for each in left if isinstance(each.callee, Tool)]
        told = ", ".join(f"{effects.count(effect)} {word}" for effect, word in _WORDS.items() if effect in effects)
        counted = [(kind, word, kinds.count(kind)) for kind, word in _KINDS.items() if kind in kinds]
        return [(f"{count} {word}{'s' * (count > 1)}", told if kind == "tool" else "") for kind, word, count in counted]

    def count(self, state: str) -> int:
        """How many lines are in this state."""
        return sum(line.state == state for line in self.lines)

    @property
    def new(self) -> int:
        """How many come."""
        return self.count("new")

    @property
    def gone(self) -> int:
        """How many go."""
        return self.count("gone")


def draft_of(saved: Iterable[Reach], wanted: Iterable[Grant], faulty: int = 0) -> Draft:
    """Compare what the saved grants come to with what the wanted ones would."""
    before = {each.place: each for each in saved}
    after = {each.place: each for each in reach_of_grants(wanted)}
    lines = (_line(before.get(place), after.get(place)) for place in sorted({*before, *after}))
    return Draft(tuple(lines), faulty)


def unchanged(reach: Iterable[Reach]) -> Draft:
    """The list as it is."""
    return Draft(tuple(Line(each, "kept") for each in reach))


def _line(before: Reach | None, after: Reach | None) -> Line:
    if after is None:
        assert before is not None
        return Line(before, "gone")
    if before is None:
        return Line(after, "new")
    return Line(after, "kept", before.per_minute if before.per_minute != after.per_minute else None)


def grants_in(formset: Any) -> tuple[list[Grant], int]:
    """The grants that a formset would save, and how many of its rows are not complete."""
    wanted, faulty = [], 0
    for form in formset.forms:
        if form.instance.pk is None and not form.has_changed():
            continue
        valid = form.is_valid()
        if form.cleaned_data.get("DELETE"):
            continue
        if valid:
            wanted.append(form.instance)
        else:
            faulty += 1
    return wanted, faulty
