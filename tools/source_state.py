"""What was found at a data source lately, as its page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tools.connectors.registry import kinds
from tools.models import DataSource, Synchronisation, Tool
from tools.synchronisation import state_of

_MOST = 100
_TITLES = {"created": "New", "changed": "Changed", "missing": "No longer offered", "refused": "Refused"}
_SAID = {
    "waiting": "Waiting for the job worker",
    "running": "Asking the source, and updating its tools",
    "done": "Synchronised",
    "failed": "Failed",
    "lost": "Ended without a result: its process has died. Synchronise again",
    "": "Not synchronised yet",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A tool that is not as it was before; `pk` is None where there is no such tool, `why` is for refused ones."""

    name: str
    pk: Any
    why: str


@dataclass(frozen=True, slots=True)
class Group:
    """Tools of which the same became."""

    word: str
    title: str
    tools: list[Found]
    more: int


@dataclass(frozen=True, slots=True)
class SourceState:
    """The last test of the connection, and the latest synchronisation of kinds that have one."""

    source: DataSource
    discovers: bool
    state: str = ""
    asked_by: str = ""
    since: datetime | None = None
    error: str = ""
    unchanged: int = 0
    groups: tuple[Group, ...] = ()

    @property
    def is_under_way(self) -> bool:
        """Whether it is worth asking again."""
        return self.state in ("waiting", "running")

    @property
    def said(self) -> str:
        """The state, as words."""
        return _SAID[self.state]


def state_for(source: DataSource) -> SourceState:
    """The state of the source as it is now."""
    kind = kinds().get(source.kind)
    discovers = kind is not None and kind.discovers
    latest = Synchronisation.objects.select_related("source").filter(source=source).first()
    if latest is None or not discovers:
        return SourceState(source, discovers, "done" if source.synced_at else "", since=source.synced_at)
    state = state_of(latest)
    since = latest.finished_at or latest.started_at or latest.asked_at
    found = latest.found if state == "done" else {}
    groups = tuple(_group(word, title, found[word]) for word, title in _TITLES.items() if found.get(word))
    unchanged = int(found.get("unchanged", 0))
    return SourceState(source, discovers, state, latest.asked_by, since, latest.error, unchanged, groups)


def _group(word: str, title: str, names: list[str] | dict[str, str]) -> Group:
    shown = list(names)[:_MOST]
    known = dict(Tool.objects.filter(name__in=shown).values_list("name", "pk"))
    reasons = names if isinstance(names, dict) else {}
    tools = [Found(name, known.get(name), reasons.get(name, "")) for name in shown]
    return Group(word, title, tools, len(names) - len(shown))
