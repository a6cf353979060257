"""However many records there are, a page reads few of them: shown on fifty thousand, which are rolled back.

`python -m bench.records` measures the same pages with a million.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections, transaction
from django.utils import timezone

from audit import summary
from audit.filters import RESULTS, says
from audit.models import Record
from audit.patience import at_most
from bench.ledger_rows import RARE_ACTOR, RARE_CODE, RARE_SOURCE, RARE_TOOL, fill

ROWS = 50_000
PAGE = 51


@pytest.fixture(scope="module")
def ledger(django_db_setup, django_db_blocker) -> Iterator[None]:
    """Only the owner can make the partitions of the past; nobody else ever sees these rows.

    Making them locks the ledger until the end: ask through `owner` only.
    """
    with django_db_blocker.unblock(), transaction.atomic("owner"):
        with connections["owner"].cursor() as cursor:
            fill(cursor, ROWS)
        yield
        transaction.set_rollback(True, "owner")


def rows_read(plan: str) -> int:
    """How many rows the scans of an EXPLAIN (ANALYZE) brought up or threw away."""
    scans = re.findall(r"Scan.*actual time=\S+ rows=([\d.]+) loops=(\d+)", plan)
    thrown = re.findall(r"Rows Removed by (?:Filter|Index Recheck): (\d+)", plan)
    return round(sum(float(rows) * int(loops) for rows, loops in scans) + sum(map(int, thrown)))


def plan_of(rows) -> str:
    return rows.explain(analyze=True, timing=True)


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"tool": "tool_3"},
        {"tool": RARE_TOOL},
        {"tool": "no_such_tool"},
        {"actor": "person.3"},
        {"actor": RARE_ACTOR},
        {"connector": "source-1"},
        {"connector": RARE_SOURCE},
        {"code": "ok"},
        {"code": RARE_CODE},
        {"code": "no_such_code"},
        {"kind": "config"},
        {"kind": "system"},
        {"decision": "deny"},
        {"door": "rest"},
        {"door": "agent"},
        {"trace_id": "no-such-trace"},
        {"call_id": "00000000-0000-7000-8000-000000000000"},
    ],
)
def test_a_page_reads_little_more_than_it_shows(wanted):
    for page in (Record.objects.using("owner").filter(**wanted), half_way(wanted)):
        plan = plan_of(page.order_by("-at", "-id")[:PAGE])
        assert rows_read(plan) <= 1_200, plan


def half_way(wanted):
    middle = timezone.now() - timedelta(days=30)
    return Record.objects.using("owner").filter(**wanted, at__lt=middle)


@pytest.mark.usefixtures("ledger")
def test_a_request_is_found_without_reading_the_ledger():
    asked = Record.objects.using("owner").values_list("request_id", flat=True)[ROWS // 2]
    rows = Record.objects.using("owner").filter(request_id=asked)
    assert rows.count() == 2
    with at_most(5_000, using="owner"):  # as every page of the ledger asks
        plan = plan_of(rows)
    assert "audit_record_request" in plan or "request_id_idx" in plan, plan


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("words", ["batch700", "no such words"])
def test_words_are_found_by_their_index(words):
    plan = plan_of(Record.objects.using("owner").filter(says(words)).order_by("-at", "-id")[:PAGE])
    assert "to_tsvector_idx" in plan, plan
    assert rows_read(plan) <= 1_200, plan


def explained(statement: str) -> str:
    """The plan of one of the dashboard's questions, about a day of which other tests have no records."""
    until = timezone.now() - timedelta(days=20)
    values: dict[str, Any] = {"since": until - timedelta(days=1), "until": until, "step": timedelta(hours=1)}
    with connections["owner"].cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING) {statement}", values)
        return "\n".join(line for (line,) in cursor.fetchall())


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("statement", [summary._BY_TIME, summary._BY_TOOL])
def test_the_dashboard_reads_only_its_range(statement):
    plan = explained(statement)
    assert rows_read(plan) <= 4 * ROWS / 60, plan


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("result", list(RESULTS))
def test_a_page_of_results_reads_little_more_than_it_shows(result):
    """Looked for in the past, where no other test has records."""
    until = timezone.now() - timedelta(days=20)
    rows = Record.objects.using("owner").filter(RESULTS[result][1], at__lt=until)
    plan = plan_of(rows.order_by("-at", "-id")[:PAGE])
    assert rows_read(plan) <= 4_000, plan


@pytest.mark.usefixtures("ledger")
def test_the_timeline_reads_no_table():
    rows = Record.objects.using("owner").values("at", "kind", "decision", "code")
    plan = plan_of(rows.order_by("-at")[:5_000])
    assert "Index Only Scan" in plan, plan
    assert "Heap Scan" not in plan, plan
