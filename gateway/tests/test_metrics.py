"""What Prometheus reads: valid, complete, with bounded labels, and there when PostgreSQL is not."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from psycopg.conninfo import make_conninfo

from audit.histogram import BOUNDS_US, Histogram
from gateway.app import Gateway
from gateway.hearing import Hearing
from gateway.meter import Meter
from gateway.metrics import FAMILIES, Metrics, jobs, read
from gateway.terms import Refused
from gateway.tests.conftest import Company, FakeConnector, call, in_thread, post, until
from mcpsite.postgres import conninfo
from tools.connectors.base import ConnectorError

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(autouse=True)
def _numbers_of_this_test_alone(settings):
    settings.METRICS_DIR = None


async def scraped(gateway: Gateway) -> dict[str, list[Sample]]:
    """Family → samples, read with Prometheus's own parser."""
    text, content_type = await gateway.metrics.scrape("")
    assert content_type.startswith("text/plain; version=")
    return {family.name: family.samples for family in text_string_to_metric_families(text.decode())}


def value(found: dict[str, list[Sample]], name: str, family: str | None = None, **labels: str) -> float:
    family = family or re.sub(r"_(total|count|sum|bucket)$", "", name)
    values = [sample.value for sample in found[family] if sample.name == name and sample.labels == labels]
    assert len(values) == 1, f"{name}{labels}: {found[family]}"
    return values[0]


async def test_calls_are_counted_by_tool_connector_decision_and_code(gateway: Gateway, company: Company):
    await call(gateway, company.token, "echo")
    await call(gateway, company.token, "echo")
    await call(gateway, company.token, "write")
    await call(gateway, company.token, "hidden")
    await call(gateway, company.token, "echo", {"text": 1})
    found = await scraped(gateway)
    office = {"connector": "office"}
    assert value(found, "mcpsite_calls_total", tool="echo", decision="allow", code="ok", **office) == 2
    assert value(found, "mcpsite_calls_total", tool="write", decision="allow", code="ok", **office) == 1
    assert value(found, "mcpsite_calls_total", tool="hidden", decision="deny", code="not_granted", **office) == 1
    assert value(found, "mcpsite_calls_total", tool="echo", decision="deny", code="invalid_arguments", **office) == 1
    assert value(found, "mcpsite_call_seconds_count", connector="office") == 3
    assert value(found, "mcpsite_upstream_seconds_count", connector="office") == 3
    assert sum(sample.value for sample in found["mcpsite_mcp_requests"]) == 5


async def test_a_failing_upstream_is_counted_with_its_code(gateway: Gateway, company: Company, outside: FakeConnector):
    outside.fails = [ConnectorError("upstream_error", "It is broken.")]
    await call(gateway, company.token, "echo")
    found = await scraped(gateway)
    labels = {"tool": "echo", "connector": "office", "decision": "allow", "code": "upstream_error"}
    assert value(found, "mcpsite_calls_total", **labels) == 1


async def test_names_that_clients_make_up_are_one_label(gateway: Gateway, company: Company):
    for number in range(30):
        await call(gateway, company.token, f"made_up_{number}")
    found = await scraped(gateway)
    assert {sample.labels["tool"] for sample in found["mcpsite_calls"]} == {"unknown"}
    labels = {"tool": "unknown", "connector": "unknown", "decision": "deny", "code": "unknown_tool"}
    assert value(found, "mcpsite_calls_total", **labels) == 30


async def test_every_way_a_call_can_end_is_counted_once(gateway: Gateway, company: Company, monkeypatch):
    monkeypatch.setattr(type(gateway.ledger), "available", property(lambda ledger: False))
    assert (await call(gateway, company.token, "echo")).status == 503
    found = await scraped(gateway)
    labels = {"tool": "echo", "connector": "office", "decision": "deny", "code": "ledger_unavailable"}
    assert value(found, "mcpsite_calls_total", **labels) == 1
    assert value(found, "mcpsite_ledger_available") == 0


async def test_the_upstream_is_a_part_of_the_whole(gateway: Gateway, company: Company):
    await call(gateway, company.token, "echo")
    found = await scraped(gateway)
    whole = value(found, "mcpsite_call_seconds_sum", connector="office")
    assert 0 <= value(found, "mcpsite_upstream_seconds_sum", connector="office") < whole < 5
    buckets = [sample for sample in found["mcpsite_call_seconds"] if sample.name.endswith("_bucket")]
    assert len(buckets) == len(BOUNDS_US) + 1
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts)
    assert buckets[-1].labels["le"] == "+Inf"
    assert buckets[-1].value == 1


async def test_the_ledger_the_budgets_and_the_policy_are_there(gateway: Gateway, company: Company):
    await call(gateway, company.token, "echo")
    found = await scraped(gateway)
    rows = value(found, "mcpsite_ledger_rows_total")
    assert rows >= value(found, "mcpsite_ledger_batches_total") >= 1
    assert value(found, "mcpsite_ledger_wait_seconds_count") == rows
    assert 0 < value(found, "mcpsite_ledger_wait_seconds_sum") < 5
    assert value(found, "mcpsite_ledger_queued") == 0
    assert value(found, "mcpsite_ledger_available") == 1
    assert value(found, "mcpsite_budget_requests_total", bucket="shared", outcome="granted") == 1
    assert value(found, "mcpsite_budget_alone") == 0
    assert value(found, "mcpsite_policy_version") == gateway.feed.current.version
    assert 0 <= value(found, "mcpsite_policy_age_seconds") < 5
    assert value(found, "mcpsite_processes") == 1


async def test_a_spent_budget_is_counted(gateway: Gateway, company: Company):
    await in_thread(lambda: company.role.grants.update(calls_per_minute=1))
    await until(lambda: 1 in gateway.feed.snapshot.grants[company.role.pk].values())
    await call(gateway, company.token, "echo")
    await call(gateway, company.token, "echo")
    found = await scraped(gateway)
    labels = {"tool": "echo", "connector": "office", "decision": "deny", "code": "budget_exhausted"}
    assert value(found, "mcpsite_calls_total", **labels) == 1
    assert value(found, "mcpsite_budget_requests_total", bucket="shared", outcome="refused") == 1


async def test_without_redis_the_buckets_of_the_process_are_counted(gateway: Gateway, company: Company):
    gateway.budgets._away_until = time.monotonic() + 60
    await call(gateway, company.token, "echo")
    found = await scraped(gateway)
    assert value(found, "mcpsite_budget_requests_total", bucket="own", outcome="granted") == 1
    assert value(found, "mcpsite_budget_alone") == 1


async def test_who_is_turned_away_is_counted_by_status(gateway: Gateway):
    await call(gateway, "mcps_wrong", "echo")
    await post(gateway, b"{", None, method="PUT")
    found = await scraped(gateway)
    assert value(found, "mcpsite_mcp_requests_total", status="401") == 1
    assert value(found, "mcpsite_mcp_requests_total", status="405") == 1


# --- Jobs ------------------------------------------------------------------------------------------------------------


async def test_jobs_are_counted_by_queue_and_status_and_the_oldest_is_timed(committed_db: None):
    await in_thread(_make_jobs)
    try:
        found = await jobs(conninfo(connection.settings_dict))
    finally:
        await in_thread(_remove_jobs)
    counts = {labels: number for labels, (number,) in found["mcpsite_jobs"].items() if labels[0].startswith("test-")}
    assert counts == {
        ("test-a", "todo"): 2,
        ("test-a", "scheduled"): 1,
        ("test-a", "failed"): 1,
        ("test-b", "doing"): 1,
    }
    ages = {labels[0]: age for labels, (age,) in found["mcpsite_jobs_oldest_seconds"].items()}
    assert 3600 <= ages["test-a"] < 3700
    assert "test-b" not in ages
    assert found["mcpsite_job_workers"] == {(): [1]}
    assert found["mcpsite_database_up"] == {(): [1]}


def _make_jobs() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, status, scheduled_at) VALUES"
            " ('test-a', 't', 'todo', NULL), ('test-a', 't', 'todo', NULL), ('test-a', 't', 'failed', NULL),"
            " ('test-b', 't', 'doing', NULL), ('test-a', 't', 'todo', now() + interval '1 hour')"
        )
        cursor.execute("UPDATE procrastinate_events SET at = now() - interval '1 hour' WHERE type = 'deferred'")
        cursor.execute(
            "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now()), (now() - interval '5 minutes')"
        )


def _remove_jobs() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM procrastinate_jobs")
        cursor.execute("DELETE FROM procrastinate_workers")


async def test_the_queries_of_the_jobs_stay_quick_when_there_are_many(committed_db: None):
    await in_thread(_make_many_jobs)
    try:
        started = time.monotonic()
        found = await jobs(conninfo(connection.settings_dict))
        took = time.monotonic() - started
    finally:
        await in_thread(_remove_jobs)
    assert found["mcpsite_jobs"][("test-many", "succeeded")] == [100_000]
    assert found["mcpsite_jobs"][("test-many", "todo")] == [10]
    assert took < 0.5


def _make_many_jobs() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, status) SELECT 'test-many', 't',"
            " (CASE WHEN n <= 10 THEN 'todo' ELSE 'succeeded' END)::procrastinate_job_status"
            " FROM generate_series(1, 150000) n"
        )


# --- PostgreSQL is away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"], ids=["refuses", "hangs"])
async def test_without_postgresql_the_rest_is_told_in_time(gateway: Gateway, company: Company, host: str):
    await call(gateway, company.token, "echo")
    away = make_conninfo(host=host, port=9, user="nobody", dbname="none")
    metrics = Metrics(away, gateway.reading, gateway.sessions.count)
    started = time.monotonic()
    text, _ = await metrics.scrape("")
    assert time.monotonic() - started < 1.0
    found = {family.name: family.samples for family in text_string_to_metric_families(text.decode())}
    assert value(found, "mcpsite_database_up") == 0
    assert "mcpsite_jobs" not in found
    assert value(found, "mcpsite_call_seconds_count", connector="office") == 1


# --- The format ------------------------------------------------------------------------------------------------------


async def test_openmetrics_is_given_to_who_accepts_it(gateway: Gateway, company: Company):
    await call(gateway, company.token, "echo")
    text, content_type = await gateway.metrics.scrape(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert {"mcpsite_calls", "mcpsite_call_seconds", "mcpsite_build_info"} <= names
    assert text.endswith(b"# EOF\n")


async def test_a_directory_that_cannot_be_used_leaves_the_numbers_of_one_process(
    gateway: Gateway, company: Company, settings, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    settings.METRICS_DIR = tmp_path / "file" / "metrics"
    metrics = Metrics(conninfo(connection.settings_dict), gateway.reading, gateway.sessions.count)
    metrics.start()
    await call(gateway, company.token, "echo")
    text, _ = await metrics.scrape("")
    await metrics.stop()
    assert b'mcpsite_calls_total{code="ok",connector="office",decision="allow",tool="echo"} 1.0' in text


async def test_two_processes_are_one_sum(gateway: Gateway, company: Company, settings, tmp_path):
    settings.METRICS_DIR = tmp_path
    both = [Metrics(conninfo(connection.settings_dict), gateway.reading, gateway.sessions.count) for _ in range(2)]
    for metrics in both:
        metrics.start()
    await call(gateway, company.token, "echo")
    await until(lambda: len(list(tmp_path.glob("*.json"))) == 2)
    await both[1].scrape("")  # publishes at once
    text, _ = await both[0].scrape("")
    assert b'mcpsite_calls_total{code="ok",connector="office",decision="allow",tool="echo"} 2.0' in text
    assert b"mcpsite_processes 2.0" in text
    assert f"mcpsite_policy_version {gateway.feed.current.version}.0" in text.decode()
    for metrics in both:
        await metrics.stop()


def test_every_family_that_is_read_is_in_the_list():
    class Any_:
        snapshot: Any = None
        batches = rows = rows_spooled = queued = spooled = granted = refused = granted_alone = refused_alone = 0
        available = alone = True
        waits = Histogram()

        @staticmethod
        def names() -> list[str]:
            return []

        def on(self, kind: str, handler: Any) -> None:
            """Nothing comes."""

    hearing = Hearing(Any_(), Any_(), hears=False)
    reading = read(Meter(), Any_(), Any_(), Any_(), Any_(), hearing)
    assert {name for name in reading.totals if FAMILIES[name].kind == "gauge"} == set()
    assert {name for name in reading.states if FAMILIES[name].kind != "gauge"} == set()


def test_the_page_describes_every_metric_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(mcpsite_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    described = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    suffix = {"counter": "_total"}
    expected = {family.name + suffix.get(family.kind, ""): (family.kind, family.labels) for family in FAMILIES.values()}
    assert described == expected
    used = set(re.findall(r"\bmcpsite_\w+", page))
    known = expected.keys() | {
        f"{family.name}_{part}"
        for family in FAMILIES.values()
        if family.kind == "histogram"
        for part in ("bucket", "count", "sum")
    }
    assert used <= known, used - known


# --- What it costs ---------------------------------------------------------------------------------------------------


def test_a_call_pays_less_than_three_microseconds_for_its_metrics(gateway_snapshot):
    """All that the path of a call counts: the call, two histograms, the ledger's wait, the budget, the status."""
    meter, waits, budget = Meter(), Histogram(), 0
    rounds = 20_000

    def once() -> float:
        nonlocal budget
        started = time.thread_time_ns()
        for number in range(rounds):
            meter.asked("office", number)
            meter.answer(gateway_snapshot.tools["echo"], "ok", number * 1000)
            meter.status(200)
            waits.observe(number)
            budget += 1
        return (time.thread_time_ns() - started) / rounds / 1000

    assert min(once() for _ in range(5)) < 3.0


@pytest.fixture
def gateway_snapshot() -> Any:
    """A snapshot with nothing but the tool, since only its names are asked."""
    entry = type("Entry", (), {"label": "echo", "source": type("S", (), {"source": type("T", (), {"name": "office"})})})
    return type("Snapshot", (), {"tools": {"echo": entry, **{f"tool_{n}": entry for n in range(1000)}}})


def test_a_refusal_keeps_its_reason_from_the_caller():
    assert Refused("unknown_tool", "No.", reason="not_granted").reason == "not_granted"
    assert Refused("unknown_tool", "No.").reason == "unknown_tool"
