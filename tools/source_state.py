"""What was found at a data source lately, as its page shows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse

from tools.connectors.registry import kinds
from tools.models import DataSource, Synchronisation, Tool
from tools.synchronisation import state_of

_MOST = 100
_TITLES = {"created": "New", "changed": "Changed", "missing": "No longer offered", "refused": "Refused"}
_SAID = {
    "waiting": "Waiting for the job worker",
    "running": "Asking the source what it offers",
    "done": "Synchronised",
    "failed": "Failed",
    "lost": "Ended without a result: its process has died. Synchronise again",
    "": "Not synchronised yet",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What is not as it was before; `url` is its page, empty where there is none, `why` is for what was refused."""

    name: str
    url: str
    why: str


@dataclass(frozen=True, slots=True)
class Group:
    """That of which the same became."""

    word: str
    title: str
    found: list[Found]
    more: int


@dataclass(frozen=True, slots=True)
class Offered:
    """How many of a kind the source has, as `3 tools`, and the list of them."""

    said: str
    url: str


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
    offered: tuple[Offered, ...] = ()

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
        state = "done" if source.synced_at else ""
        return SourceState(source, discovers, state, since=source.synced_at, offered=_offered(source))
    state = state_of(latest)
    since = latest.finished_at or latest.started_at or latest.asked_at
    found = latest.found if state == "done" else {}
    groups = tuple(_group(source, word, title, found[word]) for word, title in _TITLES.items() if found.get(word))
    unchanged = int(found.get("unchanged", 0))
    told = (latest.asked_by, since, latest.error, unchanged, groups, _offered(source))
    return SourceState(source, discovers, state, *told)


def _offered(source: DataSource) -> tuple[Offered, ...]:
    kinds_of = (("tool", source.tools), ("prompt", source.prompts), ("resource", source.resources))
    counts = [(word, rows.count()) for word, rows in kinds_of]
    return tuple(
        Offered(
            f"{count} {word}{'s' * (count > 1)}",
            f"{reverse(f'admin:tools_{word}_changelist')}?source__id__exact={source.pk}",
        )
        for word, count in counts
        if count
    )


def _group(source: DataSource, word: str, title: str, names: list[str] | dict[str, str]) -> Group:
    shown = list(names)[:_MOST]
    pages = _pages_of(source, shown)
    reasons = names if isinstance(names, dict) else {}
    found = [Found(name, pages.get(name, ""), reasons.get(name, "")) for name in shown]
    return Group(word, title, found, len(names) - len(shown))


def _pages_of(source: DataSource, shown: list[str]) -> dict[str, str]:
    """What a synchronisation calls it → the page of it."""
    tools = Tool.objects.filter(name__in=shown).values_list("name", "pk")
    prompts = {f"prompt {name}": pk for name, pk in source.prompts.values_list("source_name", "pk")}
    resources = {
        f"{'template' if is_template else 'resource'} {uri}": pk
        for uri, is_template, pk in source.resources.values_list("uri", "is_template", "pk")
    }
    named = (("tool", dict(tools)), ("prompt", prompts), ("resource", resources))
    return {
        name: reverse(f"admin:tools_{kind}_change", args=(pk,))
        for kind, known in named
        for name, pk in known.items()
        if name in shown
    }
