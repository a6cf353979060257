"""Turns measurements into what people read: the table, and which goals are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from statistics import median

from bench.measure import Measurement

Medians = dict[tuple[str, int], Measurement]
Pick = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise and how it stands; `value` is None when its targets were not measured. Without a limit it is a figure
    to compare others with.
    """

    work: str
    value: float | None
    limit: float | None = None
    at_least: bool = False

    @property
    def shown(self) -> str:
        """The value in three digits, or more before the point."""
        if self.value is None:
            return "-"
        return f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.3g}"

    @property
    def verdict(self) -> str:
        """Whether it is reached."""
        if self.value is None:
            return "not measured"
        if self.limit is None:
            return ""
        return "reached" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "MISSED"


def medians(measurements: Iterable[Measurement]) -> Medians:
    """For each target and number of connections the median of every figure over the rounds."""
    rounds: dict[tuple[str, int], list[Measurement]] = {}
    for one in measurements:
        rounds.setdefault((one.target, one.connections), []).append(one)
    return {key: _median(key, several) for key, several in rounds.items()}


def _median(key: tuple[str, int], several: list[Measurement]) -> Measurement:
    names = [field.name for field in fields(Measurement) if field.name not in ("target", "connections", "calls")]
    figures = {name: median(getattr(one, name) for one in several) for name in names}
    return Measurement(target=key[0], connections=key[1], calls=sum(one.calls for one in several), **figures)


_HEAD = (
    "target",
    "c",
    "calls",
    "CPU ms",
    "PostgreSQL",
    "Valkey",
    "sealing",
    "calls/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "RSS MB",
)


def table(results: Medians) -> str:
    """One line for each target and number of connections, grouped by connections."""
    rows = [_HEAD, *(_row(results[key]) for key in sorted(results, key=lambda key: key[1]))]
    return _aligned(rows, left=1)


def _row(one: Measurement) -> tuple[str, ...]:
    beside = (one.postgres_ms, one.valkey_ms, one.sealing_ms)
    engines = [f"{each:.3f}" if any(beside) else "" for each in beside]
    return (
        one.target, str(one.connections), str(one.calls), f"{one.cpu_ms:.3f}", *engines, f"{one.calls_per_second:,.0f}",
        f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.rss_mb:.0f}",
    )  # fmt: skip


_ON, _OFF = "mcpsite", "mcpsite-unrecorded"


def ledger_table(results: Medians) -> str:
    """What calls cost with the ledger less what they cost without it; empty where not both were measured."""
    head = ("the ledger adds", "CPU ms", "PostgreSQL", "sealing", "p50 ms", "p95 ms", "p99 ms")
    rows = [_added_by_ledger(results, c) for name, c in results if name == _ON and (_OFF, c) in results]
    return _aligned([head, *rows], left=1) if rows else ""


def _added_by_ledger(results: Medians, connections: int) -> tuple[str, ...]:
    on, off = results[_ON, connections], results[_OFF, connections]
    names = ("cpu_ms", "postgres_ms", "sealing_ms", "p50_ms", "p95_ms", "p99_ms")
    return (f"c={connections}", *(f"{getattr(on, name) - getattr(off, name):.3f}" for name in names))


def goals(results: Medians) -> list[Goal]:
    """What a call is to cost at most, and how much less than elsewhere."""
    return [
        *(Goal(f"CPU ms of a call, c={c}", _of(results, c, _cpu), limit) for c, limit in ((1, 0.5), (32, 0.25))),
        *(
            Goal(f"PostgreSQL's CPU ms of a call, c={c}", _of(results, c, lambda one: one.postgres_ms), limit)
            for c, limit in ((1, 0.2), (32, 0.03))
        ),
        *(
            Goal(f"times less CPU than FastMCP's proxy, c={c}", _ratio(results, "fastmcp", "mcpsite", c), limit, True)
            for c, limit in ((1, 50), (32, 100))
        ),
        *(
            Goal(f"… with one shared session, c={c}", _ratio(results, "fastmcp-shared", "mcpsite", c), limit, True)
            for c, limit in ((1, 6), (32, 10))
        ),
        *(Goal(f"times the CPU of the bare path, c={c}", _ratio(results, "mcpsite", "bare", c), 2) for c in (1, 8, 32)),
        *(
            Goal(f"a legacy call, times a modern one, c={c}", _ratio(results, "mcpsite-legacy", "mcpsite", c), 1.5)
            for c in (1, 8, 32)
        ),
        *(
            Goal(f"latency ms added to {target}, c=32, {name}", _added(results, target, pick), limit)
            for target in ("direct", "bare")
            for name, pick, limit in (("p50", _p50, 4), ("p99", _p99, 15))
        ),
        # What the kinds of group commit cost that were measured before this was built.
        *(
            Goal(f"CPU ms that the ledger adds to a call, c={c}", _added(results, _OFF, _cpu, c), limit)
            for c, limit in ((1, 0.39), (32, 0.06))
        ),
        *(
            Goal(f"CPU ms of {what}, c=8", _of(results, 8, _cpu, target), limit)
            for target, what, limit in (
                ("mcpsite-stdio", "a call over stdio", 0.7),
                ("mcpsite-sql", "a statement with 20 rows", 0.6),
                ("mcpsite-list", "a list of tools", 0.3),
                ("mcpsite-list-legacy", "a list of tools in a session", 0.3),
            )
        ),
        Goal(
            "an answer of 1 MB, times the CPU of sending it, c=8", _ratio(results, "mcpsite-long", "direct-long", 8), 3
        ),
        *(
            Goal(f"in a large installation, times a small one, c={c}", _ratio(results, "mcpsite-grown", _ON, c), 1.1)
            for c in (1, 8, 32)
        ),
        Goal("RSS MB of the web worker, c=32", _of(results, 32, lambda one: one.worker_rss_mb), 150),
    ]


def _cpu(one: Measurement) -> float:
    return one.cpu_ms


def _p50(one: Measurement) -> float:
    return one.p50_ms


def _p99(one: Measurement) -> float:
    return one.p99_ms


def _of(results: Medians, connections: int, pick: Pick, target: str = "mcpsite") -> float | None:
    one = results.get((target, connections))
    return None if one is None else pick(one)


def _ratio(results: Medians, above: str, below: str, connections: int) -> float | None:
    high, low = _of(results, connections, _cpu, above), _of(results, connections, _cpu, below)
    return high / low if high is not None and low else None


def _added(results: Medians, target: str, pick: Pick, connections: int = 32) -> float | None:
    ours, theirs = _of(results, connections, pick), _of(results, connections, pick, target)
    return None if ours is None or theirs is None else ours - theirs


def goals_table(all_goals: list[Goal]) -> str:
    """One line for each goal."""
    rows: list[tuple[str, ...]] = [("goal", "measured", "wanted", "")]
    for goal in all_goals:
        wanted = "" if goal.limit is None else f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"
        rows.append((goal.work, goal.shown, wanted, goal.verdict))
    return _aligned(rows, left=1)


def _aligned(rows: list[tuple[str, ...]], left: int) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join((f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])))
