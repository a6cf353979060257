"""A record told as a story: who asked for what, what was decided and why, what happened, and what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from audit.arguments import PERMISSION, Arguments
from audit.changes import type_of
from audit.codes import CARRIED_OUT, meaning_of
from audit.doors import changes_of, detail_of
from audit.filters import DOORS
from audit.models import Record
from audit.opening import keys_of
from audit.places import SOURCE, TOKEN, TOOL, USER, Version, name_of, url_of, version_of
from audit.proofs.documents import Sealing, sealing_of
from audit.theme import badge

RUN = "agents.Run"
_MOST_RELATED = 20
# Requests are answered, or given up, long before.
_REQUEST_LASTS = timedelta(hours=1)
_EFFECTS = {"read": ("Reads only", "green"), "write": ("Writes", "orange"), "destructive": ("Destroys", "red")}
_CALLS = (Record.Kind.CALL, Record.Kind.OUTCOME)
_OF_ROUNDS = {"input_required": "Asked", "answered": "Answered"}
# What these are, where they are intents.
_INTENTS_OF_ROUNDS = {"input_required": "Question to the client", "answered": "Answer of the client"}
# What nobody should pass over in a list.
_ALARMS = frozenset(
    {
        "head_behind",
        "head_forked",
        "head_inconsistent",
        "ledger_faulty",
        "ledger_not_sealed",
        "ledger_records_refused",
        "record_refused",
        "refresh_reused",
        "stream_alarm",
        "unknown",
    }
)
_TOLD_ELSEWHERE = frozenset({"changes", "message", "label", "links", "action", "run"})
_DONE = {"create": "created", "update": "changed", "delete": "deleted", "test": "tested", "sync": "synchronised"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: a name, what is known, and where that leads. `code` is for ids, in a face of even width."""

    name: str
    value: str | SafeString
    url: str = ""
    code: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the time that a call took, in hundredths of the whole."""

    name: str
    left: float
    width: float
    took: str
    kind: str


@dataclass(frozen=True, slots=True)
class Related:
    """Another record, and when it was compared with this one."""

    record: Record
    url: str
    offset: str

    @property
    def kind(self) -> str:
        """What kind of record it is, for people."""
        return kind_of(self.record)

    @property
    def reason(self) -> str:
        """Why, where the record gives a reason."""
        return str(detail_of(self.record).get("reason") or "")


@dataclass(frozen=True)
class Story:
    """What the page of a record shows to whoever `request` comes from; `arguments` when they were asked for."""

    request: HttpRequest
    record: Record
    arguments: Arguments | None = field(default=None)

    # --- In one sentence ------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """What kind of record it is, for people."""
        return kind_of(self.record)

    @property
    def headline(self) -> str:
        """Who did what, as a sentence without the end."""
        record = self.record
        who = record.actor or ("A command" if record.door == "command" else "The site")
        match record.kind:
            case Record.Kind.OUTCOME if record.code == "unknown":
                return f"Nobody knows what became of {who}'s call of {record.tool}"
            case Record.Kind.CALL | Record.Kind.OUTCOME:
                return f"{who} called {record.tool}"
            case Record.Kind.INTENT if record.code == "input_required":
                return f"{record.tool} asked {who} for something, and waits"
            case Record.Kind.INTENT if record.code == "answered":
                return f"{who} answered what {record.tool} asked"
            case Record.Kind.INTENT:
                return f"{who} set out to call {record.tool}"
            case Record.Kind.DENIED:
                return f"{who} was refused {record.tool or 'a call'}"
            case Record.Kind.INVALID if record.code == "refused_unread":
                return f"{record.actor or record.address or 'Somebody'} sent a request that was refused unread"
            case Record.Kind.INVALID:
                return f"{who} called {record.tool or 'something'} with bad input"
        if record.object_type:
            return f"{who} {_DONE.get(record.code, record.code.replace('_', ' '))} {self.about}"
        return f"{record.actor or record.address or who}: {record.code.replace('_', ' ')}"

    @property
    def about(self) -> str:
        """What the record is about, as `tool find_customer`."""
        name = str(self.detail.get("label") or self.record.object_id or "")
        return f"{name_of(self.record.object_type or '')} {name}"

    @property
    def meaning(self) -> str:
        """The code as a sentence."""
        return meaning_of(self.record.code)

    @property
    def verdict(self) -> SafeString:
        """Whether it went well, in a word and a colour."""
        return verdict_of(self.record)

    @cached_property
    def detail(self) -> dict[str, Any]:
        """What the kind of event adds."""
        return detail_of(self.record)

    # --- Who, what, why -------------------------------------------------------------------------------------------

    @property
    def who(self) -> list[Fact]:
        """The principal, and where it came from."""
        record = self.record
        user = url_of(self.request, USER, pk=record.actor_id) if record.actor_id else ""
        token = url_of(self.request, TOKEN, prefix=record.token) if record.token else ""
        return list(
            _known(
                Fact("Actor", record.actor or "", user),
                Fact("On behalf of", record.on_behalf_of or ""),
                Fact("Token", record.token or "", token, code=True),
                Fact("Roles at that time", (record.roles or "").replace(",", ", ")),
                Fact("Client", record.client or ""),
                Fact("Address", record.address or "", code=True),
                Fact("Run", self._run, url_of(self.request, RUN, pk=self._run) if self._run else "", code=True),
                Fact("Door", DOORS.get(record.door or "", record.door or "")),
            )
        )

    @property
    def _run(self) -> str:
        """The agent's run that the record belongs to."""
        about = self.record.object_id if self.record.object_type == RUN else self.detail.get("run")
        return str(about or "")

    @property
    def asked(self) -> list[Fact]:
        """What was to be called or changed."""
        record = self.record
        tool = url_of(self.request, TOOL, name=record.tool) if record.tool else ""
        source = url_of(self.request, SOURCE, name=record.connector) if record.connector else ""
        about = url_of(self.request, record.object_type, pk=record.object_id) if record.object_type else ""
        label, colour = _EFFECTS.get(record.effect or "", (record.effect or "", "grey"))
        return list(
            _known(
                Fact("Tool", record.tool or "", tool, code=True),
                Fact("Data source", record.connector or "", source),
                Fact("Effect at that time", badge(label, colour) if label else ""),
                Fact("Object", self.about if record.object_type else "", about),
            )
        )

    @property
    def decided(self) -> str:
        """Why, as a sentence."""
        if self.record.decision == Record.Decision.DENY or not self.record.tool:
            return self.meaning
        return "A grant of the roles names the tool, the budget was not spent, and the arguments fit."

    @cached_property
    def version(self) -> Version | None:
        """The definition that the record names by its fingerprint."""
        return version_of(self.request, self.record)

    @property
    def fingerprint(self) -> str:
        """Of the definition, in hexadecimal digits."""
        return "" if self.record.definition is None else bytes(self.record.definition).hex()

    @property
    def message(self) -> str:
        """What the caller was told, or the administrator."""
        return str(self.detail.get("message") or "")

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """Field, before, after."""
        return [(name[:1].upper() + name[1:], old, new) for name, old, new in changes_of(self.detail)]

    @property
    def remarks(self) -> str:
        """What else the detail says, as JSON."""
        rest = {name: value for name, value in self.detail.items() if name not in _TOLD_ELSEWHERE}
        return json.dumps(rest, indent=2, ensure_ascii=False) if rest else ""

    # --- The arguments --------------------------------------------------------------------------------------------

    @property
    def sealed(self) -> bool:
        """Whether the record commits to arguments or a result; of a call with effects, the intent has the former."""
        return self.record.args_commit is not None or self.record.result_commit is not None

    @cached_property
    def keeps_nothing(self) -> str:
        """Why nothing can be read any more, when the data key was destroyed."""
        row = keys_of([self.record]).get(self.record.key_id or "")
        if row is None or row.destroyed_at is None:
            return ""
        return f"What this record kept was erased on {row.destroyed_at:%Y-%m-%d}. It still verifies."

    @property
    def shown(self) -> str:
        """What the tool's policy shows of the arguments, indented."""
        return json.dumps(json.loads(self.record.shown), indent=2, ensure_ascii=False) if self.record.shown else ""

    @property
    def has_result(self) -> bool:
        """Whether the record commits to a result."""
        return self.record.result_commit is not None

    @property
    def may_read_arguments(self) -> bool:
        """Whether the reader has the permission for it."""
        return bool(self.request.user.has_perm(PERMISSION))

    @property
    def readings(self) -> list[Related]:
        """Who has read them before, and why."""
        found = Record.objects.filter(object_type=type_of(Record), object_id=str(self.record.rid)).order_by("-id")
        return [self._related(each) for each in found.defer("ct")[:_MOST_RELATED]]

    # --- What happened --------------------------------------------------------------------------------------------

    @cached_property
    def same_call(self) -> list[Related]:
        """Every record of the call, this one too, in the order of time."""
        return self._together(Q(call_id=self.record.call_id)) if self.record.call_id else []

    @cached_property
    def same_trace(self) -> list[Related]:
        """Other records of the trace that are not of the call."""
        return self._together(Q(trace_id=self.record.trace_id), own=False) if self.record.trace_id else []

    @cached_property
    def same_request(self) -> list[Related]:
        """Other records of the HTTP request that are not of the call."""
        near = Q(at__gte=self.record.at - _REQUEST_LASTS, at__lte=self.record.at + _REQUEST_LASTS)
        wanted = Q(request_id=self.record.request_id) & near
        return self._together(wanted, own=False) if self.record.request_id else []

    @property
    def lacks_outcome(self) -> bool:
        """Whether nobody knows what became of the intent."""
        if self.record.kind != Record.Kind.INTENT:
            return False
        return all(each.record.kind == Record.Kind.INTENT for each in self.same_call)

    @property
    def measured(self) -> Record | None:
        """The record of the call that has its times."""
        records = (self.record, *(each.record for each in self.same_call))
        return next((each for each in records if each.total_us is not None), None)

    @property
    def waterfall(self) -> list[Step]:
        """Where the time went, from the beginning of the call to its record."""
        done = self.measured
        if done is None or not done.total_us:
            return []
        upstream = min(done.upstream_us or 0, done.total_us)
        before = done.total_us - upstream
        announced = done.kind == Record.Kind.OUTCOME
        first = "Checks, and the intent on record" if announced else "Token, grant, budget, arguments"
        return [
            _step("Whole call", 0, done.total_us, done.total_us, "whole"),
            _step(first, 0, before, done.total_us, "before"),
            _step(f"In {done.connector or 'the upstream'}", before, upstream, done.total_us, "upstream"),
        ]

    @property
    def result_size(self) -> str:
        """In bytes."""
        done = self.measured
        return "" if done is None or done.result_bytes is None else f"{done.result_bytes:,} bytes"

    # --- Before and after ------------------------------------------------------------------------------------------

    @property
    def previous(self) -> str:
        """The actor's record before this one."""
        at, key = self.record.at, self.record.pk
        return self._neighbour(Q(at__lt=at) | Q(at=at, id__lt=key), Q(at__lte=at), ("-at", "-id"))

    @property
    def following(self) -> str:
        """The actor's next record."""
        at, key = self.record.at, self.record.pk
        return self._neighbour(Q(at__gt=at) | Q(at=at, id__gt=key), Q(at__gte=at), ("at", "id"))

    def _neighbour(self, beyond: Q, near: Q, order: tuple[str, str]) -> str:
        if not self.record.actor:
            return ""
        rows = Record.objects.filter(beyond, near, actor=self.record.actor).order_by(*order)
        found = rows.values_list("pk", flat=True).first()
        return "" if found is None else address_of(found)

    # --- Proof ------------------------------------------------------------------------------------------------------

    @cached_property
    def sealing(self) -> Sealing | None:
        """Its place in the tree; None until it is sealed."""
        return sealing_of(self.record)

    @property
    def proof(self) -> list[Fact]:
        """When it was sealed, where, and who signed that."""
        if self.sealing is None:
            return []
        head, zone = self.sealing.head, timezone.get_current_timezone()
        return list(
            _known(
                Fact("Sealed", f"{head.sealed_at.astimezone(zone):%-d %B %Y, %H:%M:%S.%f %Z}"),
                Fact("Place in the tree", f"{self.sealing.seq:,}", code=True),
                Fact("First head over it", f"{head.number:,}", reverse("head-detail", args=(head.number,)), code=True),
                Fact("Cosigned by", ", ".join(self.sealing.witnesses)),
            )
        )

    # --- Evidence ---------------------------------------------------------------------------------------------------

    @property
    def evidence(self) -> list[Fact]:
        """Ids and hashes, for programs and proofs."""
        record = self.record
        listed = reverse("admin:audit_record_changelist")
        return list(
            _known(
                Fact("Record id", str(record.rid), code=True),
                Fact("Number", str(record.pk), code=True),
                _found("Call id", listed, "call_id", record.call_id),
                _found("Trace id", listed, "trace_id", record.trace_id),
                _found("Request id", listed, "request_id", record.request_id),
                _hexadecimal("Commitment to the arguments", record.args_commit),
                _hexadecimal("Commitment to the result", record.result_commit),
                Fact("Key that encrypts the arguments", record.key_id or "", code=True),
                _hexadecimal("Leaf", record.leaf),
                _hexadecimal("MAC", record.mac),
                Fact("Writer", str(record.writer_id), code=True),
                Fact("Its count", "" if record.writer_seq is None else str(record.writer_seq), code=True),
            )
        )

    def _together(self, wanted: Q, *, own: bool = True) -> list[Related]:
        rows: QuerySet[Record] = Record.objects.filter(wanted).defer("detail", "ct").order_by("at", "id")
        if not own:
            rows = rows.exclude(pk=self.record.pk)
            if self.record.call_id:
                rows = rows.exclude(call_id=self.record.call_id)
        return [self._related(each) for each in rows[:_MOST_RELATED]]

    def _related(self, other: Record) -> Related:
        return Related(other, address_of(other.pk), _offset(other.at - self.record.at))


def verdict_of(record: Record) -> SafeString:
    """Decision and code as a coloured word."""
    return badge(_word_of(record), colour_of(record))


def kind_of(record: Record) -> str:
    """What kind of record it is, for people."""
    if record.kind == Record.Kind.INTENT and record.code in _INTENTS_OF_ROUNDS:
        return _INTENTS_OF_ROUNDS[record.code]
    return str(record.get_kind_display())


def _word_of(record: Record) -> str:
    if record.decision == Record.Decision.DENY:
        return "Refused"
    if record.code in _OF_ROUNDS:
        return _OF_ROUNDS[record.code]
    if record.kind == Record.Kind.INTENT:
        return "Announced"
    if record.code == "unknown":
        return "Unknown"
    if record.kind in _CALLS:
        return "Carried out" if record.code == "ok" else "Failed"
    return "Recorded"


def colour_of(record: Record) -> str:
    """Red for what was refused or is an alarm, orange for what failed, green for a call that went well, else grey."""
    if record.decision == Record.Decision.DENY or record.code in _ALARMS:
        return "red"
    if record.kind in _CALLS:
        return "green" if record.code in CARRIED_OUT else "orange"
    return "orange" if record.code.endswith("_failed") else "grey"


def address_of(key: int) -> str:
    """The page of the record."""
    return reverse("admin:audit_record_change", args=(key,))


def milliseconds(microseconds: int | None) -> str:
    """`1.2 ms`, or a dash for None."""
    return "-" if microseconds is None else f"{microseconds / 1000:,.1f} ms"


def _step(name: str, start: int, took: int, whole: int, kind: str) -> Step:
    return Step(name, round(start / whole * 100, 2), round(took / whole * 100, 2), milliseconds(took), kind)


def _offset(between: timedelta) -> str:
    seconds = between.total_seconds()
    if not seconds:
        return "this record"
    size = abs(seconds)
    said = f"{size * 1000:,.1f} ms" if size < 1 else f"{size:,.1f} s" if size < 120 else f"{size / 60:,.0f} min"
    return f"{said} {'later' if seconds > 0 else 'before'}"


def _known(*facts: Fact) -> Iterator[Fact]:
    return (each for each in facts if each.value)


def _found(name: str, listed: str, parameter: str, value: object) -> Fact:
    return Fact(name, str(value or ""), f"{listed}?{parameter}={value}" if value else "", code=True)


def _hexadecimal(name: str, value: Iterable[int] | None) -> Fact:
    return Fact(name, "" if value is None else bytes(value).hex(), code=True)
