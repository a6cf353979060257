"""The doctor: asks the real thing, names what is wrong, and says what to do."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import DatabaseError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from access.models import User
from audit.datakeys import DataKeys
from audit.entry import Entry, encode, uuid7
from audit.ledger import record
from audit.models import Mark
from audit.outside.models import Contradiction, SinkState
from audit.outside.sinks.file import FileSink
from audit.retention import partitions
from audit.sealing import evidence
from audit.sealing.evidence import Holder
from audit.spool import Spool
from audit.streams.models import Stream, StreamState
from audit.verify import COSIGNATURE, Key
from keyring.keys import ring
from mcpsite import doctor, ledger_checks
from mcpsite.check import Check, State
from mcpsite.doctor import CHECKS, examine, worst
from mcpsite.tests.test_dbroles import of

pytestmark = pytest.mark.django_db


def found(name: str) -> Check:
    return next(check for check in examine() if check.name == name)


@pytest.mark.parametrize(
    "name", ["Database", "Durability", "Migrations", "Database roles", "Privileges", "Partitions", "Clock", "Redis"]
)
def test_what_is_in_order_is_said_to_be(name: str) -> None:
    check = found(name)
    assert (check.state, check.advice) == (State.OK, "")


def test_every_check_is_made_and_what_is_wrong_comes_with_advice() -> None:
    checks = examine()
    assert [check.name for check in checks] == list(CHECKS)
    assert all(check.found for check in checks)
    assert all(check.advice for check in checks if check.state != State.OK)


def test_a_server_that_may_forget_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SWITCHED_OFF", "SELECT 'fsync'")
    assert found("Durability").state == State.FAIL


def test_one_role_for_everything_is_warned_of(settings: Any) -> None:
    settings.ONE_DATABASE_ROLE = True
    assert found("Database roles").state == State.WARN


def test_roles_of_the_ledger_that_are_missing_are_named(settings: Any) -> None:
    site = settings.DATABASES["default"]["USER"]
    settings.LEDGER_DATABASES = {**settings.LEDGER_DATABASES, "writer": {"USER": site}, "reader": {"USER": site}}
    check = found("Database roles")
    assert (check.state, check.found) == (State.WARN, "The site's role is writer and reader of the ledger as well.")
    assert "set LEDGER_WRITER_URL, LEDGER_READER_URL" in check.advice


@pytest.fixture
def spoiled() -> Any:
    """Do something as the owner, and undo it after the test."""
    undo: list[str] = []

    def spoil(statement: str, back: str) -> None:
        with psycopg.connect(of("owner"), autocommit=True) as owner:
            owner.execute(statement.encode())
        undo.append(back)

    yield spoil
    with psycopg.connect(of("owner"), autocommit=True) as owner:
        for statement in undo:
            owner.execute(statement.encode())


@pytest.mark.parametrize(
    ("privilege", "table"), [("DELETE", "audit_record"), ("UPDATE", "audit_leaf"), ("INSERT", "audit_head")]
)
def test_a_privilege_too_many_fails(spoiled: Any, privilege: str, table: str) -> None:
    spoiled(
        f"GRANT {privilege} ON {table} TO mcpsite_site",
        f"REVOKE {privilege} ON {table} FROM mcpsite_site",
    )
    check = found("Privileges")
    assert check.state == State.FAIL
    assert f"{privilege} on {table}" in check.found


def test_a_trigger_that_is_switched_off_fails(spoiled: Any) -> None:
    spoiled(
        "ALTER TABLE audit_head DISABLE TRIGGER audit_head_frozen",
        "ALTER TABLE audit_head ENABLE TRIGGER audit_head_frozen",
    )
    check = found("Privileges")
    assert (check.state, "audit_head_frozen" in check.found) == (State.FAIL, True)


def test_too_few_partitions_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "FEWEST_AHEAD", 12)
    check = found("Partitions")
    assert check.state == State.WARN
    assert "manage.py worker jobs" in check.advice


def test_records_that_wait_in_a_spool_are_counted(settings: Any, tmp_path: Path) -> None:
    settings.LEDGER_SPOOL_DIR = tmp_path
    spool = Spool(tmp_path, ring())
    spool.open()
    assert found("Spool").state == State.OK
    row = encode(Entry(kind="outcome", code="ok"), DataKeys(ring()), uuid7(), 1)
    spool.append([row, row, row])
    assert found("Spool").state == State.WARN
    assert found("Spool").found.startswith("3 records wait there for PostgreSQL, since 20")
    spool.close()
    (left,) = Spool(tmp_path, ring()).left_behind()
    left.close(keep=True)
    assert (found("Spool").state, left.path.stem in found("Spool").found) == (State.WARN, True)


def test_what_was_drained_never_taken_or_closed_as_unknown_is_told(settings: Any, tmp_path: Path) -> None:
    settings.LEDGER_SPOOL_DIR = tmp_path
    Mark.objects.update_or_create(name="intents")
    told: dict[str, Any] = {
        "spool_drained": {"records": 7},
        "record_refused": {"message": "It is too long."},
        "unknown": {},
    }
    for code, detail in told.items():
        record(Entry(kind="system", code=code, detail=json.dumps(detail)))
    assert " 7 of a process that had ended were written at 20" in found("Spool").found
    check = found("Records never taken")
    assert (check.state, check.found.endswith(" UTC: It is too long.")) == (State.WARN, True)
    assert "closed as unknown, the last at 20" in found("Unknown outcomes").found
    Mark.objects.filter(name="intents").update(at=timezone.now() - timedelta(minutes=6))
    assert found("Unknown outcomes").advice == "See that the job worker runs."


def test_a_witness_on_the_same_machine_is_said_to_prove_less(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (Key(name, COSIGNATURE, bytes(32)) for name in ("mcp.example.com/witness", "elsewhere.example.com/w1"))
    signed = [Holder(key.name, 0, timezone.now()) for key in (near, far)]
    settings.LEDGER_WITNESSES = ()
    monkeypatch.setattr(evidence, "witnesses", lambda: signed[:1])
    check = found("Witnesses")
    assert (check.state, "Run another one" in check.advice) == (State.WARN, True)
    settings.LEDGER_WITNESSES = (near, far)
    monkeypatch.setattr(evidence, "witnesses", lambda: signed)
    check = found("Witnesses")
    assert (check.state, check.advice) == (State.OK, "")


def test_what_a_sink_says_is_repeated(settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sink = FileSink(tmp_path)
    settings.LEDGER_ANCHORS = (sink,)
    now = timezone.now()
    monkeypatch.setattr(evidence, "sinks", lambda: [Holder(sink.name, 0, now)])
    assert found("Anchors").state == State.OK
    SinkState.objects.create(sink=sink.name, tried_at=now, next_at=now, failures=1, error="The disk is full.")
    check = found("Anchors")
    assert (check.state, check.advice) == (State.WARN, "The disk is full.")


def test_what_is_held_against_the_ledger_fails() -> None:
    assert found("Contradictions").state == State.OK
    year = timezone.now() + timedelta(days=365)
    made = {"source": "w1", "code": "head_behind", "head": 7, "sealed_at": year, "at": timezone.now()}
    Contradiction.objects.create(**made, note="", digest=bytes(32))
    check = found("Contradictions")
    assert (check.state, "w1 holds head 7 (head_behind" in check.found) == (State.FAIL, True)
    assert "accept-restore" in check.advice


def test_a_stream_with_an_alarm_fails() -> None:
    stream = Stream.objects.create(name="siem", kind="webhook", address="https://siem.example.com/")
    StreamState.objects.create(stream=stream)
    assert found("Streams").state == State.OK
    StreamState.objects.filter(stream=stream).update(missed=3)
    check = found("Streams")
    assert (check.state, check.found) == (State.FAIL, "siem: Records were gone before they could be sent.")


PROGRESS = "SELECT {number}, 10, now(), {age}::float, {lag}::float, {waiting}, {refused}"


@pytest.mark.parametrize(
    ("progress", "name", "state"),
    [
        ({}, "Sealing", State.OK),
        ({"number": "NULL"}, "Sealing", State.FAIL),
        ({"lag": 11, "waiting": 3}, "Sealing", State.FAIL),
        ({"age": 121}, "Sealing", State.FAIL),
        ({}, "Refused records", State.OK),
        ({"refused": 2}, "Refused records", State.FAIL),
    ],
)
def test_seals_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, progress: dict[str, Any], name: str, state: State
) -> None:
    values = {"number": 5, "age": 1, "lag": 0, "waiting": 0, "refused": 0, **progress}
    monkeypatch.setattr(ledger_checks, "PROGRESS", PROGRESS.format(**values))
    assert found(name).state == state


def test_an_engine_that_is_away_is_a_failed_check_and_no_crash(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise DatabaseError("the server closed the connection\nand more")

    monkeypatch.setattr(doctor, "rows", away)
    check = found("Clock")
    assert (check.state, check.found) == (State.FAIL, "the server closed the connection")


def test_the_worst_decides() -> None:
    def check(state: State) -> Check:
        return Check("x", state, "y")

    assert worst([check(State.OK), check(State.WARN)]) == State.WARN
    assert worst([check(State.FAIL), check(State.WARN)]) == State.FAIL
    assert worst([check(State.OK)]) == State.OK


def test_the_command_prints_and_ends_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    checks = {
        "One": lambda name: Check(name, State.OK, "good"),
        "Two": lambda name: Check(name, State.WARN, "bad", "do"),
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    call_command("doctor", stdout=said)
    assert said.getvalue().splitlines() == ["ok    One  good", "warn  Two  bad", "           → do"]
    checks["Three"] = lambda name: Check(name, State.FAIL, "worse", "do more")
    said = io.StringIO()
    with pytest.raises(SystemExit, match="1"):
        call_command("doctor", "--json", stdout=said)
    document = json.loads(said.getvalue())
    assert document["state"] == "fail"
    assert document["checks"][0] == {"name": "One", "state": "ok", "found": "good", "advice": ""}


@pytest.fixture
def operator() -> User:
    user = User.objects.create_user("operator", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_metrics"))
    return user


def test_the_page_and_rest_show_it_to_operators_only(operator: User, client: Client) -> None:
    page, rest = reverse("doctor-page"), reverse("doctor")
    stranger = User.objects.create_user("stranger", password="x", is_staff=True)
    client.force_login(stranger)
    assert (client.get(page).status_code, client.get(rest).status_code) == (403, 403)
    client.force_login(operator)
    shown = client.get(page)
    assert shown.status_code == 200
    for name in CHECKS:
        assert name in shown.content.decode()
    assert [check["name"] for check in client.get(rest).json()["checks"]] == list(CHECKS)
    assert page in client.get(reverse("admin:index")).content.decode()
