"""What Prometheus is told at `/metrics`: the families, the sum over all processes, and the jobs.

`FAMILIES` is the whole list; `docs/metrics.md` describes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
from collections.abc import Awaitable, Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Literal

import psycopg
from django.conf import settings
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from audit.export import gauges as exports
from audit.histogram import BOUNDS_US, Histogram
from audit.ledger import Ledger
from audit.outside.ages import AGES, expected
from audit.retention.gauges import GAUGES, samples
from audit.sealing.progress import PROGRESS, Progress
from audit.streams.steering import STANDING, Standing
from gateway.feed import Feed
from gateway.hearing import Hearing
from gateway.limits import Budgets
from gateway.meter import Meter
from gateway.sources import Connectors
from gateway.tally import Reading, Samples, Tally

logger = logging.getLogger("gateway.metrics")

_PUBLISH_SECONDS = 1.0
# PostgreSQL may be away, and the rest must be told all the same.
_JOBS_SECONDS = 0.5
_BOUNDS = [*(f"{bound / 1_000_000:g}" for bound in BOUNDS_US), "+Inf"]

Join = Callable[[Iterable[float]], float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Counters and histograms are added over processes; `join` says what becomes of their gauges."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    join: Join = sum


_CALL = ("tool", "connector", "decision", "code")
_LISTED = (
    Family("mcpsite_calls", "counter", "Calls that came to an end, by every door.", _CALL),
    Family("mcpsite_call_seconds", "histogram", "Calls carried out: until the answer was on record.", ("connector",)),
    Family("mcpsite_upstream_seconds", "histogram", "The upstream's part of these calls.", ("connector",)),
    Family("mcpsite_tasks_ended", "counter", "Tasks that have ended, by how.", ("status",)),
    Family("mcpsite_tasks", "gauge", "Tasks that are kept: under way, or with a result.", ("status",)),
    Family("mcpsite_mcp_requests", "counter", "Requests at /mcp, by HTTP status.", ("status",)),
    Family("mcpsite_listeners", "gauge", "Streams of MCP clients that are open to be told of changes."),
    Family("mcpsite_listeners_told", "counter", "Messages that went out on them."),
    Family("mcpsite_upstream_changes", "counter", "Changes that upstreams told of by themselves.", ("connector",)),
    Family("mcpsite_mcp_streams", "gauge", "Open event streams at /mcp."),
    Family("mcpsite_mcp_questions", "gauge", "Questions to clients that wait for their answer."),
    Family("mcpsite_mcp_sessions", "gauge", "Sessions of clients of older revisions, as Redis counts them."),
    Family("mcpsite_http_requests", "counter", "Requests of pages and REST.", ("area", "status")),
    Family("mcpsite_http_seconds", "histogram", "Pages and REST: until the answer began.", ("area",)),
    Family("mcpsite_ledger_batches", "counter", "Commits of the ledger's writers."),
    Family("mcpsite_ledger_rows", "counter", "Records in these commits."),
    Family("mcpsite_ledger_wait_seconds", "histogram", "How long records waited until they were durable."),
    Family("mcpsite_ledger_queued", "gauge", "Records that are not durable yet."),
    Family("mcpsite_ledger_spooled", "gauge", "Records in spools, which the database has not taken yet."),
    Family("mcpsite_ledger_spool_rows", "counter", "Records that went to a spool."),
    Family("mcpsite_outcomes_unknown", "counter", "Calls with effects of which nobody knows what became of them."),
    Family("mcpsite_witness_age_seconds", "gauge", "Since the last signature of a witness.", ("witness",)),
    Family("mcpsite_anchor_age_seconds", "gauge", "Since a head was last written to a place outside.", ("sink",)),
    Family("mcpsite_ledger_contradictions", "gauge", "Heads held against the ledger that no break explains."),
    Family("mcpsite_ledger_partitions_ahead", "gauge", "Coming months that the ledger has a partition for."),
    Family("mcpsite_ledger_oldest_seconds", "gauge", "Age of the oldest record of the ledger."),
    Family("mcpsite_ledger_archives", "gauge", "Cold exports of months.", ("state",)),
    Family("mcpsite_ledger_expiries", "gauge", "Months of which records are or were past their time.", ("state",)),
    Family("mcpsite_ledger_holds", "gauge", "Legal holds in force."),
    Family("mcpsite_exports_unfinished", "gauge", "Exports and evidence packs that wait or are made.", ("state",)),
    Family("mcpsite_exports", "counter", "Exports and evidence packs that have ended.", ("outcome",)),
    Family("mcpsite_export_records", "counter", "Records in those that were made."),
    Family("mcpsite_export_seconds", "counter", "How long these took."),
    Family("mcpsite_seal_lag_seconds", "gauge", "How long the first record without a seal has waited for it."),
    Family("mcpsite_records_unsealed", "gauge", "Records that wait for their seal; at most 10,000 are counted."),
    Family("mcpsite_records_refused", "gauge", "Records that are not as their writer wrote them, and are not sealed."),
    Family("mcpsite_heads", "counter", "Signed heads of the ledger."),
    Family("mcpsite_head_size", "gauge", "Records that the newest head is over."),
    Family("mcpsite_head_age_seconds", "gauge", "Since the newest head; every minute there is one."),
    Family("mcpsite_ledger_available", "gauge", "1 when every process can write the ledger.", join=min),
    Family("mcpsite_budget_requests", "counter", "Answers of budgets, by whose bucket it was.", ("bucket", "outcome")),
    Family("mcpsite_budget_alone", "gauge", "Processes that count budgets by themselves, since Redis is away."),
    Family("mcpsite_policy_version", "gauge", "The oldest version of the policy that a process uses.", join=min),
    Family("mcpsite_policy_newest_version", "gauge", "The newest version of the policy in a process.", join=max),
    Family("mcpsite_policy_age_seconds", "gauge", "Since the database confirmed the policy: the oldest.", join=max),
    Family("mcpsite_connectors_open", "gauge", "Processes that keep the connector open.", ("connector",)),
    Family("mcpsite_calls_parked", "gauge", "Calls that wait for their client to answer a question."),
    Family("mcpsite_processes", "gauge", "Processes that carry out calls."),
    Family("mcpsite_database_up", "gauge", "1 when the jobs could be read from PostgreSQL just now."),
    Family("mcpsite_jobs", "gauge", "Jobs: all that are not finished, and of the newest 100,000.", ("queue", "status")),
    Family("mcpsite_jobs_oldest_seconds", "gauge", "How long the first waiting job has been due.", ("queue",)),
    Family("mcpsite_job_workers", "gauge", "Workers that gave a sign of life within 30 seconds."),
    Family("mcpsite_stream_sent", "counter", "Messages that the receiver acknowledged.", ("stream",)),
    Family("mcpsite_stream_lag_records", "gauge", "Sealed records that are not acknowledged yet.", ("stream",)),
    Family("mcpsite_stream_lag_seconds", "gauge", "Age of the first of them.", ("stream",)),
    Family("mcpsite_stream_alarm", "gauge", "1 when the stream has an alarm.", ("stream",)),
    Family("mcpsite_ledger_faults", "gauge", "Faults that the newest verification found, by its scope.", ("scope",)),
    Family("mcpsite_ledger_verified_seconds", "gauge", "How long ago that was.", ("scope",)),
    Family("mcpsite_build_info", "gauge", "Always 1.", ("version", "python")),
)  # fmt: skip
FAMILIES = {family.name: family for family in _LISTED}


# --- One process -----------------------------------------------------------------------------------------------------


def read(
    meter: Meter,
    ledger: Ledger,
    budgets: Budgets,
    feed: Feed,
    connectors: Connectors,
    hearing: Hearing,
    parked: Sized = (),
) -> Reading:
    """The numbers of one process, read from another thread than the one that counts."""
    totals: Samples = {
        "mcpsite_calls": {key: [count] for key, count in list(meter.calls.items())},
        "mcpsite_call_seconds": _histograms(meter.answered),
        "mcpsite_upstream_seconds": _histograms(meter.upstream),
        "mcpsite_tasks_ended": {(status,): [count] for status, count in list(meter.tasks.items())},
        "mcpsite_mcp_requests": {(str(status),): [count] for status, count in list(meter.statuses.items())},
        "mcpsite_listeners_told": {(): [hearing.listening.told]},
        "mcpsite_upstream_changes": {(name,): [count] for name, count in list(hearing.heard.items())},
        "mcpsite_http_requests": {key: [count] for key, count in list(meter.pages.items())},
        "mcpsite_http_seconds": _histograms(meter.page_times),
        "mcpsite_ledger_batches": {(): [ledger.batches]},
        "mcpsite_ledger_rows": {(): [ledger.rows]},
        "mcpsite_ledger_spool_rows": {(): [ledger.rows_spooled]},
        "mcpsite_ledger_wait_seconds": {(): _numbers(ledger.waits)},
        "mcpsite_budget_requests": {
            ("shared", "granted"): [budgets.granted],
            ("shared", "refused"): [budgets.refused],
            ("own", "granted"): [budgets.granted_alone],
            ("own", "refused"): [budgets.refused_alone],
        },
    }
    states: Samples = {
        "mcpsite_ledger_queued": {(): [ledger.queued]},
        "mcpsite_ledger_spooled": {(): [ledger.spooled]},
        "mcpsite_ledger_available": {(): [int(ledger.available)]},
        "mcpsite_budget_alone": {(): [int(budgets.alone)]},
        "mcpsite_connectors_open": {(name,): [1] for name in connectors.names()},
        "mcpsite_calls_parked": {(): [len(parked)]},
        "mcpsite_listeners": {(): [hearing.listening.count]},
        "mcpsite_processes": {(): [1]},
    }
    if (snapshot := feed.snapshot) is not None:
        states["mcpsite_policy_version"] = states["mcpsite_policy_newest_version"] = {(): [snapshot.version]}
        states["mcpsite_policy_age_seconds"] = {(): [feed.age_seconds]}
    return Reading(totals, states)


def _histograms(histograms: dict[str, Histogram]) -> dict[tuple[str, ...], list[float]]:
    return {(name,): _numbers(histogram) for name, histogram in list(histograms.items())}


def _numbers(histogram: Histogram) -> list[float]:
    return [*histogram.counts, histogram.sum_us]


class Metrics:
    """Puts the numbers of one process to those of the others, once a second and whenever somebody asks."""

    def __init__(
        self, conninfo: str, reading: Callable[[], Reading], sessions: Callable[[], Awaitable[int | None]]
    ) -> None:
        self._conninfo, self._sessions = conninfo, sessions
        self._reading = reading
        self._tally = Tally(settings.METRICS_DIR) if settings.METRICS_DIR else None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish; returns at once."""
        if self._tally is not None:
            self._task = asyncio.create_task(self._publish(self._tally))

    async def stop(self) -> None:
        """Publish the last numbers, and leave."""
        if self._task is None or self._tally is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._tally.publish, self._reading)
        self._tally.close()

    async def _publish(self, tally: Tally) -> None:
        """A full disk takes numbers away, and nothing else."""
        opened = failed = False
        while True:
            try:
                if not opened:
                    await asyncio.to_thread(tally.open)
                    opened = True
                await asyncio.to_thread(tally.publish, self._reading)
                failed = False
            except OSError as error:
                if not failed:
                    logger.warning("metrics cannot be published in METRICS_DIR: %s", error)
                failed = True
            await asyncio.sleep(_PUBLISH_SECONDS)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text for Prometheus and its content type: OpenMetrics where `accept` asks for it."""
        (totals, states), found, sessions = await asyncio.gather(
            asyncio.to_thread(self._gathered), jobs(self._conninfo), self._sessions()
        )
        counted: Samples = {} if sessions is None else {"mcpsite_mcp_sessions": {(): [sessions]}}
        return exposition({**totals, **_joined(states), **found, **counted}, accept)

    def _gathered(self) -> tuple[Samples, list[Samples]]:
        """The totals of all processes, and the states of each."""
        if self._tally is not None:
            try:
                self._tally.publish(self._reading)
                return self._tally.gather()
            except OSError as error:
                logger.warning("METRICS_DIR cannot be used, these are the metrics of one process: %s", error)
        own = self._reading()
        return own.totals, [own.states]


# --- The jobs --------------------------------------------------------------------------------------------------------

_ACTIVE = """
WITH active AS (
    SELECT queue_name, count(*) AS jobs, min(id) AS first,
        CASE WHEN status = 'todo' AND scheduled_at > now() THEN 'scheduled' ELSE status::text END AS state
    FROM procrastinate_jobs WHERE status IN ('todo', 'doing') GROUP BY queue_name, state
)
SELECT queue_name, state, jobs, CASE WHEN state = 'todo' THEN extract(epoch FROM now() - (
    SELECT max(at) FROM procrastinate_events WHERE job_id = first AND at <= now()
))::float END FROM active
"""
_FINISHED = """
SELECT queue_name, status::text, count(*) FROM (
    SELECT queue_name, status FROM procrastinate_jobs ORDER BY id DESC LIMIT 100000
) AS newest WHERE status NOT IN ('todo', 'doing') GROUP BY 1, 2
"""
_WORKERS = "SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - interval '30 seconds'"


_TASKS = "SELECT status, count(*) FROM gateway_task GROUP BY status"
_UNKNOWN = "SELECT found FROM audit_mark WHERE name = 'intents'"
_VERIFIED = """
SELECT substr(name, 10), found, extract(epoch FROM now() - at)::float FROM audit_mark
WHERE name IN ('verified-all', 'verified-part')
"""


async def jobs(conninfo: str) -> Samples:
    """The jobs as PostgreSQL has them now, or only that it did not say so in half a second."""
    try:
        async with asyncio.timeout(_JOBS_SECONDS):
            return await _jobs(conninfo)
    except (psycopg.Error, OSError, TimeoutError) as error:
        logger.warning("the jobs cannot be read for /metrics: %s", str(error).partition("\n")[0] or "no answer in time")
        return {"mcpsite_database_up": {(): [0]}}


async def _jobs(conninfo: str) -> Samples:
    connection = await psycopg.AsyncConnection.connect(
        conninfo, autocommit=True, application_name="mcpsite metrics", options="-c statement_timeout=500"
    )
    async with connection:
        active = await (await connection.execute(_ACTIVE)).fetchall()
        finished = await (await connection.execute(_FINISHED)).fetchall()
        workers = await (await connection.execute(_WORKERS)).fetchone()
        tasks = await (await connection.execute(_TASKS)).fetchall()
        unknown = await (await connection.execute(_UNKNOWN)).fetchone()
        outside = await (await connection.execute(AGES, expected())).fetchall()
        kept = await (await connection.execute(f"{GAUGES} UNION ALL {exports.GAUGES}")).fetchall()
        streams = [Standing(*row) for row in await (await connection.execute(STANDING)).fetchall()]
        verified = await (await connection.execute(_VERIFIED)).fetchall()
        progress = await (await connection.execute(PROGRESS)).fetchone()
    return {
        "mcpsite_database_up": {(): [1]},
        "mcpsite_jobs": {(queue, state): [count] for queue, state, count, *_ in (*active, *finished)},
        "mcpsite_jobs_oldest_seconds": {(queue,): [age] for queue, _, _, age in active if age is not None},
        "mcpsite_job_workers": {(): [workers[0] if workers else 0]},
        "mcpsite_tasks": {(status,): [count] for status, count in tasks},
        **samples(kept),
        "mcpsite_outcomes_unknown": {(): [unknown[0] if unknown else 0]},
        "mcpsite_witness_age_seconds": _ages(outside, "witness"),
        "mcpsite_anchor_age_seconds": _ages(outside, "anchor"),
        "mcpsite_ledger_contradictions": {(): [count for what, _, count in outside if what == "contradictions"]},
        "mcpsite_stream_sent": {(each.name,): [each.sent] for each in streams},
        "mcpsite_stream_lag_records": {(each.name,): [each.lag_records] for each in streams},
        "mcpsite_stream_lag_seconds": {(each.name,): [each.lag_seconds] for each in streams},
        "mcpsite_stream_alarm": {(each.name,): [int(bool(each.alarm))] for each in streams},
        "mcpsite_ledger_faults": {(scope,): [found] for scope, found, _ in verified},
        "mcpsite_ledger_verified_seconds": {(scope,): [age] for scope, _, age in verified},
        **(_sealing(Progress.of(progress)) if progress else {}),
    }


def _ages(rows: Iterable[tuple[str, str, float | None]], wanted: str) -> dict[tuple[str, ...], list[float]]:
    return {(name,): [age] for what, name, age in rows if what == wanted and age is not None}


def _sealing(progress: Progress) -> Samples:
    found: Samples = {
        "mcpsite_seal_lag_seconds": {(): [progress.lag_seconds]},
        "mcpsite_records_unsealed": {(): [progress.waiting]},
        "mcpsite_records_refused": {(): [progress.refused]},
    }
    if progress.number is not None and progress.size is not None:
        found["mcpsite_heads"] = {(): [progress.number + 1]}
        found["mcpsite_head_size"] = {(): [progress.size]}
        found["mcpsite_head_age_seconds"] = {(): [progress.head_age_seconds]}
    return found


# --- All of it -------------------------------------------------------------------------------------------------------


def _joined(states: list[Samples]) -> Samples:
    """The gauges of all processes as one, each by its family's rule."""
    found: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for each in states:
        for name, values in each.items():
            for labels, (number,) in values.items():
                found.setdefault(name, {}).setdefault(labels, []).append(number)
    return {
        name: {labels: [FAMILIES[name].join(numbers)] for labels, numbers in values.items()}
        for name, values in found.items()
        if name in FAMILIES
    }


def exposition(samples: Samples, accept: str) -> tuple[bytes, str]:
    """The text of a scrape and its content type: OpenMetrics for who accepts it, else Prometheus's own format."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given({**samples, **_build()}))
    return encode(registry), content_type


class _Given(Collector):
    """Samples that are there already, as prometheus_client wants them."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        """Each family that there are samples of, in the order of the list."""
        for family in FAMILIES.values():
            if values := self._samples.get(family.name):
                yield _metric(family, values)


def _metric(family: Family, values: dict[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, numbers in sorted(values.items()):
            if len(numbers) == len(_BOUNDS) + 1:
                histogram.add_metric(labels, _cumulated(numbers), numbers[-1] / 1_000_000)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, (number,) in sorted(values.items()):
        metric.add_metric(labels, number)
    return metric


def _cumulated(numbers: list[float]) -> list[tuple[str, float]]:
    total, found = 0.0, []
    for bound, number in zip(_BOUNDS, numbers, strict=False):
        total += number
        found.append((bound, total))
    return found


def _build() -> Samples:
    return {"mcpsite_build_info": {(settings.VERSION, platform.python_version()): [1]}}
