"""What must be true whatever happened: read from the ledger, from what clients were told and from what was done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bench.chaos.load import WRITE, Acknowledged, Load, Outside
from bench.chaos.site import Site

_AT_ONCE = 5_000
_DRAINED_SECONDS = 60.0
_STORED = "SELECT rid::text, kind, trace_id FROM audit_record WHERE rid = ANY(%s::uuid[])"
_INTENDED = "SELECT trace_id FROM audit_record WHERE kind = 'intent' AND trace_id = ANY(%s)"
_OPEN = """
SELECT count(*) FROM audit_record i WHERE kind = 'intent'
AND NOT EXISTS (SELECT FROM audit_record o WHERE o.call_id = i.call_id AND o.kind = 'outcome')
"""
_CONCLUDED = "SELECT code, count(*) FROM audit_record WHERE kind = 'outcome' GROUP BY 1"
_GAPS = """
SELECT r.writer_id::text, max(r.writer_seq) - count(DISTINCT r.writer_seq)
  - (SELECT count(*) FROM audit_record s WHERE s.code = 'record_refused' AND s.writer_id = r.writer_id)
FROM audit_record r WHERE r.writer_seq IS NOT NULL GROUP BY r.writer_id
"""


@dataclass
class Checks:
    """Looks at each acknowledged call and each effect once."""

    site: Site
    load: Load
    upstream: Outside
    _calls: set[str] = field(default_factory=set)
    _effects: set[str] = field(default_factory=set)

    def now(self) -> list[str]:
        """What is wrong, of all that happened since the last time. What waits in a spool is waited for."""
        wrong, self.load.wrong = self.load.wrong, []
        return [*wrong, *self._unannounced(), *self._lost()]

    def _unannounced(self) -> list[str]:
        new = [trace for trace in self.upstream.effects.copy() if trace not in self._effects]
        wrong = [
            f"the effect of {trace} happened {n} times" for trace, n in self.upstream.effects.copy().items() if n > 1
        ]
        for chunk in _chunks(new):
            intended = {trace for (trace,) in self.site.rows(_INTENDED, chunk)}
            wrong += [f"the effect of {trace} has no intent" for trace in chunk if trace not in intended]
        self._effects.update(new)
        return wrong

    def _lost(self) -> list[str]:
        new = {record: call for record, call in self.load.acknowledged.copy().items() if record not in self._calls}
        until = time.monotonic() + _DRAINED_SECONDS
        while missing := self._missing(new):
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        self._calls.update(new)
        return [f"the call {call.trace} of {call.tool} was answered, and its record {record} is missing or another one"
                for record, call in missing.items()]  # fmt: skip

    def _missing(self, calls: dict[str, Acknowledged]) -> dict[str, Acknowledged]:
        left = dict(calls)
        for chunk in _chunks(list(calls)):
            for record, kind, trace in self.site.rows(_STORED, chunk):
                call = calls[record]
                if trace == call.trace and kind == ("outcome" if call.tool == WRITE else "call"):
                    left.pop(record, None)
        return left

    # --- At the end ---------------------------------------------------------------------------------------------------

    def until_all_is_closed(self, seconds: float) -> list[str]:
        """No intent stays without an outcome."""
        until, still_open = time.monotonic() + seconds, 1
        while time.monotonic() < until:
            ((still_open,),) = self.site.rows(_OPEN)
            if not still_open:
                return []
            time.sleep(1)
        return [f"{still_open} intents have no outcome after {seconds:.0f} s"]

    def verdict(self) -> list[str]:
        """What the verifier says of the whole ledger."""
        done = self.site.manage("verify_ledger")
        if done.returncode == 0:
            return []
        return [f"verify_ledger ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-500:]}"]

    def gaps(self) -> list[str]:
        """No writer's count has a hole that is not on record."""
        return [
            f"the count of the writer {name} lacks {lacks} records" for name, lacks in self.site.rows(_GAPS) if lacks
        ]

    def outcomes(self) -> dict[str, int]:
        """How many outcomes there are of each code."""
        return dict(self.site.rows(_CONCLUDED))


def _chunks(items: list[str]) -> list[list[str]]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
