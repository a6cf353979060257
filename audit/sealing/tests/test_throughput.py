"""The sealer keeps up with the writer, and costs next to nothing when there is nothing to do."""

from __future__ import annotations

import time

import pytest

from audit.sealing.tests.conftest import Ledger

pytestmark = pytest.mark.django_db(databases=[])

RECORDS = 40_000
# The writer's full rate is 20,000 records a second on two cores; tests share theirs with others.
LEAST_PER_CPU_SECOND = 20_000


def test_sealing_keeps_up_with_the_writer(ledger: Ledger) -> None:
    ledger.write(400)
    columns = ledger.one(
        "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attrelid = 'audit_record'::regclass"
        " AND attnum > 0 AND attname <> 'id'"
    )
    copy = f"INSERT INTO audit_record ({columns}) SELECT {columns} FROM audit_record, generate_series(1, %s)"
    ledger.connection.execute("ALTER TABLE audit_record DROP CONSTRAINT audit_record_rid_at_key")
    ledger.connection.execute(copy.encode(), [RECORDS // 400 - 1])
    sealer = ledger.sealer()
    started, cpu = time.perf_counter(), time.process_time()
    while sealer.step():
        pass
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(f"{RECORDS / seconds:,.0f} records/s, {RECORDS / cpu:,.0f} per CPU second")
    assert len(ledger.leaves()) == RECORDS
    assert RECORDS / cpu > LEAST_PER_CPU_SECOND


def test_an_idle_sealer_costs_little(ledger: Ledger) -> None:
    """Five steps a second: under 5 ms of CPU a second."""
    ledger.write()
    sealer = ledger.sealer()
    for _ in range(20):
        sealer.step()
    cpu = time.process_time()
    for _ in range(100):
        sealer.step()
    each = (time.process_time() - cpu) / 100
    print(f"{each * 1000:.3f} ms a step")
    assert each * 5 < 0.005
