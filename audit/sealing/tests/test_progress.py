"""How far sealing has come, as metrics, health and pages read it."""

from __future__ import annotations

import pytest

from audit.sealing.progress import PROGRESS, Progress
from audit.sealing.tests.conftest import Ledger

pytestmark = pytest.mark.django_db(databases=[])


def progress(ledger: Ledger) -> Progress:
    row = ledger.connection.execute(PROGRESS.encode()).fetchone()
    assert row
    return Progress.of(row)


def test_before_the_first_head_everything_waits(ledger: Ledger) -> None:
    ledger.write(3)
    ledger.connection.execute("UPDATE audit_record SET at = at - interval '20 seconds'")
    found = progress(ledger)
    assert (found.number, found.size, found.sealed_at, found.waiting, found.refused) == (None, None, None, 3, 0)
    assert 20 <= found.lag_seconds < 25


def test_what_is_sealed_or_refused_waits_for_nothing(ledger: Ledger) -> None:
    ledger.write(3)
    ledger.connection.execute("UPDATE audit_record SET actor = 'mallory' WHERE id = 3")
    sealer = ledger.sealer()
    sealer.step()
    sealer.step()
    found = progress(ledger)
    assert (found.number, found.size, found.waiting, found.refused, found.lag_seconds) == (1, 3, 0, 1, 0)
    assert found.head_age_seconds < 5


def test_a_clock_ahead_is_no_negative_lag(ledger: Ledger) -> None:
    ledger.write(1)
    ledger.connection.execute("UPDATE audit_record SET at = now() + interval '1 hour'")
    assert progress(ledger).lag_seconds == 0
