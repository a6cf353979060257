"""What metrics say of retention: rows of name, label (empty where there is none) and number."""

from __future__ import annotations

GAUGES = """
SELECT 'mcpsite_ledger_partitions_ahead', '', count(*)::float8 FROM generate_series(1, 24) AS months
WHERE to_regclass('audit_record_' || to_char(
    date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months), 'YYYYMM')) IS NOT NULL
UNION ALL SELECT 'mcpsite_ledger_oldest_seconds', '', extract(epoch FROM now() - min(at))::float8 FROM audit_record
UNION ALL SELECT 'mcpsite_ledger_archives', state, count(*) FROM audit_archive GROUP BY state
UNION ALL SELECT 'mcpsite_ledger_expiries', state, count(*) FROM audit_expiry GROUP BY state
UNION ALL SELECT 'mcpsite_ledger_holds', '', count(*) FROM audit_legalhold WHERE released_at IS NULL
"""


def samples(rows: list[tuple[str, str, float | None]]) -> dict[str, dict[tuple[str, ...], list[float]]]:
    """The rows as metrics have them."""
    found: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for name, label, number in rows:
        if number is not None:
            found.setdefault(name, {})[(label,) if label else ()] = [number]
    return found
