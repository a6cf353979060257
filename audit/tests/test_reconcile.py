"""Intents that never got an outcome: closed once, as unknown, without reading the ledger from its beginning."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit import ledger, reconcile
from audit.entry import Entry, uuid7
from audit.models import Mark, Record

pytestmark = pytest.mark.django_db(transaction=False)

AGED = timedelta(minutes=5)


@pytest.fixture(autouse=True)
def from_here_on(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier tests left in the ledger is none of ours, and nobody writes beside us."""
    monkeypatch.setattr(reconcile, "_SETTLED", timedelta(0))
    newest = Record.objects.order_by("-id").values_list("id", flat=True).first() or 0
    Mark.objects.update_or_create(name="intents", defaults={"low": newest, "high": newest, "found": 0})


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[..., uuid.UUID]:
    """Writes a record of a call as it was written some time ago."""

    def written(kind: str, call_id: uuid.UUID, age: timedelta = AGED, **fields: object) -> uuid.UUID:
        with monkeypatch.context() as patch:
            then = time.time_ns() - int(age.total_seconds() * 1e9)
            patch.setattr(time, "time_ns", lambda: then)
            code = "intended" if kind == "intent" else "ok"
            made = Entry(**{"kind": kind, "code": code, "call_id": call_id, "tool": "t", **fields})  # type: ignore[arg-type]
            return ledger.record(made)

    return written


def look() -> int:
    """As two turns of the job, the first of which only sees how far the ledger goes."""
    return reconcile.reconcile() + reconcile.reconcile()


def outcomes(call_id: uuid.UUID) -> list[str]:
    return list(Record.objects.filter(call_id=call_id, kind="outcome").order_by("id").values_list("code", flat=True))


def test_an_open_intent_is_closed_as_unknown_with_all_that_is_known(
    write: Callable[..., uuid.UUID], caplog: pytest.LogCaptureFixture
) -> None:
    call_id = uuid7()
    intent = write("intent", call_id, actor="ada", connector="office", definition=b"\1\2", decision="allow")
    with caplog.at_level(logging.ERROR):
        assert look() == 1
    (found,) = Record.objects.filter(call_id=call_id, kind="outcome")
    assert (found.code, found.actor, found.connector, found.tool) == ("unknown", "ada", "office", "t")
    assert (bytes(found.definition or b""), found.decision) == (b"\1\2", "allow")
    detail = json.loads(found.detail or "")
    assert detail["intent"] == str(intent)
    assert 299 <= detail["waited_seconds"] <= 302
    assert "1 calls have no outcome" in caplog.text
    assert Mark.objects.get(name="intents").found == 1


def test_a_look_at_once_after_another_passes_over_nothing_that_is_not_visible_yet(
    write: Callable[..., uuid.UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("intent", call_id := uuid7())
    with monkeypatch.context() as patch:
        patch.setattr(reconcile, "_SETTLED", timedelta(seconds=15))
        assert (look(), outcomes(call_id)) == (0, [])
    assert (look(), outcomes(call_id)) == (1, ["unknown"])


def test_it_is_closed_once(write: Callable[..., uuid.UUID]) -> None:
    write("intent", call_id := uuid7())
    assert (look(), look()) == (1, 0)
    assert outcomes(call_id) == ["unknown"]


def test_what_has_an_outcome_is_left_alone(write: Callable[..., uuid.UUID]) -> None:
    for code in ("ok", "cancelled", "not_called", "upstream_timeout"):
        write("intent", call_id := uuid7())
        write("outcome", call_id, code=code)
    assert look() == 0


def test_a_call_under_way_is_waited_for_and_nothing_behind_it_is_passed_over(
    write: Callable[..., uuid.UUID], settings: object
) -> None:
    write("intent", under_way := uuid7(), age=timedelta(seconds=20))
    write("intent", open_one := uuid7())
    assert look() == 1
    assert (outcomes(under_way), outcomes(open_one)) == ([], ["unknown"])
    settings.CALL_TIMEOUT_SECONDS = -20  # type: ignore[attr-defined]
    assert look() == 1
    assert outcomes(under_way) == ["unknown"]


def test_an_outcome_that_comes_after_all_stands_beside_the_unknown_one(write: Callable[..., uuid.UUID]) -> None:
    write("intent", call_id := uuid7())
    look()
    write("outcome", call_id)
    assert look() == 0
    assert outcomes(call_id) == ["unknown", "ok"]


def test_what_is_done_is_not_read_again(write: Callable[..., uuid.UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_WINDOW", 10)
    for _ in range(30):
        write("intent", call_id := uuid7())
        write("outcome", call_id)
    assert look() == 0
    mark = Mark.objects.get(name="intents")
    assert mark.low == mark.high == Record.objects.order_by("-id").values_list("id", flat=True)[0]
    with CaptureQueriesContext(
        connection,
    ) as queries:
        reconcile.reconcile()
    assert not [each for each in queries.captured_queries if "ANY" in each["sql"]]


def test_a_parked_call_is_waited_for_and_its_last_intent_counts(
    write: Callable[..., uuid.UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_WINDOW", 3)
    parked, answered, overdue = uuid7(), uuid7(), uuid7()
    for call_id in (parked, answered, overdue):
        write("intent", call_id)
    write("intent", parked, code="input_required")
    write("intent", answered, code="input_required")
    write("intent", answered, code="answered")
    write("intent", overdue, code="input_required", age=timedelta(minutes=11))
    assert look() == 2
    assert [outcomes(call_id) for call_id in (parked, answered, overdue)] == [[], ["unknown"], ["unknown"]]
    write("outcome", parked)
    look()
    mark = Mark.objects.get(name="intents")
    assert mark.low == mark.high
