"""The installation verifies its own ledger, and says so on record."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.utils import timezone
from psycopg.conninfo import make_conninfo

from audit.models import Mark, Record
from audit.tasks import verify_everything, verify_newest
from audit.verify import Report
from audit.verifying import conninfo
from bench.tamper import Drill
from keyring.keys import ring
from mcpsite.datadir import SUPERUSER

pytestmark = pytest.mark.django_db


@pytest.fixture
def ledger(monkeypatch, django_db_setup):
    """A ledger with a past, which the verifier finds in the place of the site's own."""
    if not settings.EMBEDDED_DATABASE:
        pytest.skip("only the embedded PostgreSQL has a superuser to play")
    known = connections["owner"].settings_dict
    url = settings.DATA_DIR.database_url(SUPERUSER)
    monkeypatch.setattr("bench.tamper.MAC_KEY", ring().derive("ledger-mac"))
    made = Drill(make_conninfo(url, dbname=known["NAME"]), seed=7)
    monkeypatch.setattr("audit.verifying.conninfo", lambda database: made.dsn)
    yield made
    made.close()


def last() -> tuple[str, dict[str, object]]:
    record = Record.objects.filter(kind="system").latest("pk")
    return record.code, json.loads(record.detail or "")


def test_a_whole_ledger_is_said_to_be_whole(ledger):
    out = StringIO()
    call_command("verify_ledger", stdout=out)
    assert out.getvalue().startswith("OK: heads ")
    code, detail = last()
    assert (code, detail["verdict"], detail["records"]) == ("ledger_verified", "OK", ledger.sealer.tree.size)
    assert Mark.objects.get(name="verified-all").found == 0


def test_faults_end_the_command_with_an_error_and_are_on_record(ledger):
    number = ledger.any_id()
    ledger.change("audit_record", "id", number, actor="mallory")
    out = StringIO()
    with pytest.raises(CommandError, match=r"not as it was sealed: 1 faults"):
        call_command("verify_ledger", "--json", stdout=out)
    told = json.loads(out.getvalue())
    assert (told["verdict"], told["findings"][0]["record"]) == ("MODIFIED", number)
    code, detail = last()
    assert (code, detail["findings"]) == ("ledger_faulty", told["findings"])
    assert Mark.objects.get(name="verified-all").found == 1


def test_a_mac_that_no_key_of_ours_made_is_found(ledger):
    number = ledger.any_id()
    ledger.change("audit_record", "id", number, mac=bytes(32))
    with pytest.raises(CommandError):
        call_command("verify_ledger", stdout=StringIO())
    assert last()[1]["findings"][0] | {"rid": "", "seq": 0} == {
        "verdict": "MODIFIED", "what": "the MAC is not of a key of this installation", "record": number,
        "rid": "", "seq": 0, "column": "mac",
    }  # fmt: skip


def test_the_jobs_verify_a_part_and_the_whole(ledger, monkeypatch):
    asked = []

    def verify(url, options):
        asked.append(options.since)
        return Report()

    monkeypatch.setattr("audit.verifying.verify_database", verify)
    assert (verify_newest(0), verify_everything(0)) == ("OK", "OK")
    assert timezone.now() - asked[0] - timedelta(hours=25) < timedelta(minutes=1)
    assert asked[1] is None
    assert set(Mark.objects.values_list("name", flat=True)) >= {"verified-all", "verified-part"}


def test_a_database_that_cannot_be_read_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr("audit.verifying.conninfo", lambda database: "host=/nowhere dbname=x")
    with pytest.raises(CommandError, match="The database cannot be read"):
        call_command("verify_ledger", stdout=StringIO())


def test_a_connection_is_written_as_libpq_reads_it():
    database = {"NAME": "a b", "USER": "o'hara", "HOST": "", "OPTIONS": {"sslmode": "verify-full", "pool": {"x": 1}}}
    assert conninfo(database) == r"sslmode='verify-full' dbname='a b' user='o\'hara'"
