"""How old what is outside is, in one query for who cannot wait: metrics and health."""

from __future__ import annotations

from typing import Any

from django.conf import settings

# What is held against the ledger, unless a later head with a signed `break` explains that it is missing now.
_BREAK_LATER = "SELECT FROM audit_head h WHERE position(E'\\nbreak ' in h.note) > 0 AND h.sealed_at > {moment}"
UNEXPLAINED = f"FROM audit_contradiction c WHERE NOT EXISTS ({_BREAK_LATER.format(moment='c.sealed_at')})"
# Whether there is such a head after a moment, the only value.
EXPLAINED = f"SELECT EXISTS ({_BREAK_LATER.format(moment='%s')})"
# Of each witness and sink: seconds since its last head, or since the first head where it never had one.
AGES = f"""
SELECT 'witness', w.name, extract(epoch FROM now() - coalesce(c.at, h.sealed_at))::float
FROM unnest(%s::text[]) AS w (name)
LEFT JOIN LATERAL (SELECT at FROM audit_cosignature WHERE witness = w.name ORDER BY head DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (SELECT sealed_at FROM audit_head WHERE number = 0) h ON true
UNION ALL
SELECT 'anchor', s.name, extract(epoch FROM now() - coalesce(a.at, h.sealed_at))::float
FROM unnest(%s::text[]) AS s (name)
LEFT JOIN LATERAL (SELECT at FROM audit_anchor WHERE sink = s.name ORDER BY id DESC LIMIT 1) a ON true
LEFT JOIN LATERAL (SELECT sealed_at FROM audit_head WHERE number = 0) h ON true
UNION ALL
SELECT 'contradictions', '', (SELECT count(*) {UNEXPLAINED})::float
"""  # noqa: S608 - constants


def expected() -> list[Any]:
    """The values of the query: the names of witnesses, and of sinks."""
    return [[key.name for key in settings.LEDGER_WITNESSES], [sink.name for sink in settings.LEDGER_ANCHORS]]
