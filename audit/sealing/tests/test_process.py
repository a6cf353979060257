"""The process around the sealer: what it refuses, what it goes on after, and what operators do about it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings as site
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from audit.ledger import Entry, Ledger, record
from audit.sealing import process, rotation
from audit.sealing.heads import CannotSeal
from audit.sealing.keys import parse, signers
from audit.sealing.requests import request_signature, signature_of
from audit.sealing.state import Known, State
from audit.sealing.tests.kms import ARN, Kms
from audit.verify import check_note, manifest_text, parse_head, parse_note
from mcpsite import doctor, ledger_checks
from mcpsite.datadir import SUPERUSER, DataDir
from mcpsite.engines import Postgres
from mcpsite.postgres import conninfo
from mcpsite.supervisor import Supervisor

_SEALS = ("audit_leaf", "audit_node", "audit_head", "audit_cosignature", "audit_anchor", "audit_key", "audit_refused")


@pytest.fixture
def here(settings: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state file of the test's own, and the sealer's role on the database of the tests."""
    settings.LEDGER_STATE_FILE = tmp_path / "sealer.json"  # type: ignore[attr-defined]
    databases = {
        name: {**each, "NAME": connection.settings_dict["NAME"]} for name, each in site.LEDGER_DATABASES.items()
    }
    settings.LEDGER_DATABASES = databases  # type: ignore[attr-defined]
    return tmp_path


def sealer_conninfo() -> str:
    return conninfo(site.LEDGER_DATABASES["sealer"])


@pytest.fixture
def unsealed(committed_db: None) -> None:
    """No seals of tests before, whose keys nobody has any more."""
    with connections["owner"].cursor() as cursor:
        for table in _SEALS:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {', '.join(_SEALS)} CASCADE")
        for table in _SEALS:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


@pytest.fixture
def running(unsealed: None, here: Path) -> Iterator[threading.Thread]:
    """The process's loop, in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=process.run, args=(sealer_conninfo(), stop))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def one(query: str, *values: Any) -> tuple[object, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(query, list(values))
        found: tuple[object, ...] | None = cursor.fetchone()
        return found


def wait_until(query: str, *values: Any) -> tuple[object, ...]:
    """The first row of the query, once it has one whose first column is true."""
    for _ in range(2000):
        if (found := one(query, *values)) and found[0]:
            return found
        one("SELECT pg_sleep(0.005)")
    raise AssertionError(f"It did not come about: {query}")


SEALED = """
SELECT extract(epoch FROM h.sealed_at - r.at)::float FROM audit_record r JOIN audit_leaf l ON l.record_id = r.id
JOIN audit_head h ON h.size > l.seq WHERE r.rid = %s ORDER BY h.number LIMIT 1
"""


def test_a_record_is_sealed_within_half_a_second(running: threading.Thread) -> None:
    with transaction.atomic():
        first = record(Entry(kind="system", code="test"))
    wait_until(SEALED, first)
    with transaction.atomic():
        rid = record(Entry(kind="system", code="test"))
    (seconds,) = wait_until(SEALED, rid)
    assert isinstance(seconds, float)
    assert seconds < 0.5


def test_a_request_is_answered_with_a_note_of_the_sealer(running: threading.Thread) -> None:
    digest = bytes(range(32))
    request = request_signature("export", digest)
    wait_until("SELECT 1 FROM audit_signature WHERE request = %s", request)
    text = signature_of(request)
    assert text
    note = parse_note(text)
    assert note.text == manifest_text("export", digest)
    (key,) = one("SELECT vkey FROM audit_key ORDER BY since DESC, at DESC LIMIT 1") or ("",)
    assert check_note(note, [str(key)]) == [key]


def test_a_request_of_somebody_who_only_has_the_database_stays_unsigned(
    running: threading.Thread, caplog: pytest.LogCaptureFixture
) -> None:
    forged = "01a20763-c917-73ac-98e1-deca5d039989"
    one(
        "INSERT INTO audit_signing_request (id, purpose, digest, mac) VALUES (%s, 'export', %s, %s)"
        " ON CONFLICT DO NOTHING RETURNING 1",
        forged,
        bytes(32),
        bytes(range(32)),
    )
    ours = request_signature("export", bytes(range(32)))
    wait_until("SELECT 1 FROM audit_signature WHERE request = %s", ours)
    assert one("SELECT 1 FROM audit_signature WHERE request = %s", forged) is None
    assert f"{forged} was not made by this installation" in caplog.text


def test_it_goes_on_after_its_connection_was_ended(running: threading.Thread) -> None:
    wait_until("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mcpsite sealer'")
    with psycopg.connect(site.DATA_DIR.database_url(SUPERUSER), autocommit=True) as superuser:
        superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mcpsite sealer'"
        )
    rid = record(Entry(kind="system", code="test"))
    wait_until(SEALED, rid)


def test_a_restore_that_did_not_happen_is_not_accepted(running: threading.Thread) -> None:
    rid = record(Entry(kind="system", code="test"))
    wait_until(SEALED, rid)
    with pytest.raises(CommandError, match="nothing to accept"):
        call_command("ledger", "accept-restore", "--reason", "no need")


def test_accepting_a_restore_makes_a_signed_head_and_a_record(committed_db: None, here: Path) -> None:
    state = State(here / "sealer.json")
    with process.connect(sealer_conninfo()) as each:
        sealer = process.sealer_on(each)
        assert sealer.lock()
        sealer.open()
        sealer.step()
    known = state.read()
    assert known
    lost = Known(known.number + 7, bytes(32))
    state.write(lost)
    with process.connect(sealer_conninfo()) as each, pytest.raises(CannotSeal, match="an older backup"):
        process.sealer_on(each).open()
    said = io.StringIO()
    call_command("ledger", "accept-restore", "--reason", "The disk was lost: « backup of Monday »", stdout=said)
    (text,) = one("SELECT note FROM audit_head ORDER BY number DESC LIMIT 1") or ("",)
    head = parse_head(parse_note(str(text)).text)
    assert head.number == known.number + 1
    assert head.broken == "The disk was lost: « backup of Monday »"
    assert head.further[1] == f"lost {lost.number} {'A' * 43}="
    assert f"Head {head.number} says so" in said.getvalue()
    (detail,) = one("SELECT detail FROM audit_record WHERE code = 'ledger_restored' ORDER BY id DESC LIMIT 1") or ("",)
    assert f'"lost": {lost.number}' in str(detail)
    with process.connect(sealer_conninfo()) as each:
        process.sealer_on(each).open()


def test_a_reason_must_be_given(committed_db: None, here: Path) -> None:
    for reason in ("", "   ", "x" * 501):
        with pytest.raises(CommandError, match="Give a reason"):
            call_command("ledger", "accept-restore", "--reason", reason)


def test_another_key_signs_after_the_command(
    running: threading.Thread, settings: pytest.FixtureRequest, here: Path
) -> None:
    """As with a file of keys: the sealer reads it anew by itself."""
    rid = record(Entry(kind="system", code="test"))
    wait_until(SEALED, rid)
    before = site.LEDGER_SIGNING_KEYS_PATH().read_text()
    said = io.StringIO()
    try:
        call_command("ledger", "rotate-key", stdout=said)
        after = parse(site.LEDGER_SIGNING_KEYS_PATH().read_text())
        assert len(after) == len(parse(before)) + 1
        (detail,) = one("SELECT vkey FROM audit_key ORDER BY since DESC LIMIT 1") or ("",)
        assert str(detail) in said.getvalue()
        rid = record(Entry(kind="system", code="test"))
        wait_until(SEALED, rid)
        (text,) = one("SELECT note FROM audit_head ORDER BY number DESC LIMIT 1") or ("",)
        assert check_note(parse_note(str(text)), [str(detail)])
    finally:
        # Later tests go on with both: the ledger of the session was handed over.
        assert signers()[0].public == after[0].public


def test_while_kms_is_away_records_wait_and_the_site_says_why(
    running: threading.Thread, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In KMS, then not, then again, and back to the file's key, which later tests go on with."""
    file = site.LEDGER_SIGNING_KEYS() or ""
    said = io.StringIO()
    monkeypatch.setenv("LEDGER_SIGNING_KEYS", file)
    call_command("ledger", "rotate-key", "--kms", ARN, "--endpoint", kms.url, stdout=said)
    entry = said.getvalue().splitlines()[2]
    monkeypatch.setattr(process, "_REFUSED_SECONDS", 0.05)
    monkeypatch.setenv("LEDGER_SIGNING_KEYS", f"{entry}{file}")
    wait_until("SELECT count(*) = 2 FROM audit_key")
    (since,) = one("SELECT max(since) FROM audit_key") or (0,)
    kms.failure = "DisabledException"
    rid = record(Entry(kind="system", code="test"))
    (why,) = wait_until("SELECT detail FROM audit_record WHERE code = 'ledger_not_sealed' ORDER BY id DESC LIMIT 1")
    assert "enable the key" in str(why)
    assert one(SEALED, rid) is None
    monkeypatch.setattr(ledger_checks, "_LAG_SECONDS", 0.0)
    assert "enable the key" in next(each.advice for each in doctor.examine() if each.name == "Sealing")
    assert [(each.state, "enable the key" in each.found) for each in ledger_checks.signing_keys()] == [("fail", True)]
    kms.failure = ""
    assert [each.state for each in ledger_checks.signing_keys()] == ["ok"]
    wait_until(SEALED, rid)
    monkeypatch.setenv("LEDGER_SIGNING_KEYS", f"{file},{entry}")
    wait_until("SELECT count(*) > 0 FROM audit_head WHERE number > %s AND note LIKE '%%successor%%'", since)


def test_keys_of_a_variable_are_the_operator_s_to_change(
    settings: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_SIGNING_KEYS", site.LEDGER_SIGNING_KEYS() or "")
    said = io.StringIO()
    call_command("ledger", "rotate-key", stdout=said)
    entry = said.getvalue().splitlines()[2]
    assert parse(f"{entry}{site.LEDGER_SIGNING_KEYS()}")
    assert "start the sealer again" in said.getvalue()


def test_a_new_entry_has_a_free_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(rotation.new_entry([]))
    file.chmod(0o640)
    for _ in range(2):
        rotation.put_in_front(rotation.new_entry(parse(file.read_text())), file)
    assert [each.name for each in parse(file.read_text())] == ["s3", "s2", "s1"]
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.fixture(params=["fsync", "full_page_writes", "synchronous_commit"])
def forgetful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A real server with that setting switched off; the setting, and the server's URL."""
    data = DataDir(tmp_path)
    data.create()
    postgres = Postgres(data)
    postgres.prepare()
    program = postgres.program(0)
    supervisor = Supervisor()
    try:
        supervisor.start(replace(program, command=(*program.command, "-c", f"{request.param}=off")))
        supervisor.wait_ready("postgres", seconds=60)
        yield request.param, data.database_url(SUPERUSER)
    finally:
        supervisor.stop()


def test_a_database_that_may_forget_is_refused_by_the_sealer(forgetful: tuple[str, str]) -> None:
    setting, url = forgetful
    with pytest.raises(CannotSeal, match=rf"can lose what it has committed: {setting} is off"):
        process.refuse_forgetful(url)


@pytest.mark.parametrize("forgetful", ["fsync", "full_page_writes"], indirect=True)
async def test_a_database_that_may_forget_is_refused_by_the_ledger(forgetful: tuple[str, str]) -> None:
    """Its own session waits for the disk whatever the server's `synchronous_commit` is."""
    setting, url = forgetful
    ledger = Ledger(url)
    with pytest.raises(psycopg.OperationalError, match=f"{setting} is off"):
        await ledger._connect()
    assert not ledger.available
    await ledger._disconnect()
