"""What is known to be open, each with its reason. It can only shrink: what is fixed has to be taken out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from bench.conformance.suite import Check

FILE = Path(__file__).with_name("baseline.json")

# What stands behind the endpoint → leg → scenario → check → why it is open.
Open = dict[str, dict[str, dict[str, dict[str, str]]]]


def load() -> Open:
    """The file."""
    found: Open = orjson.loads(FILE.read_bytes())
    return found


def differences(known: Open, behind: str, leg: str, checks: Iterable[Check]) -> Iterator[str]:
    """A sentence for each check that is open without a reason, and for each reason that is not needed any more."""
    reasons = known.get(behind, {}).get(leg, {})
    made: set[tuple[str, str]] = set()
    for check in checks:
        made.add((check.scenario, check.name))
        excused = check.name in reasons.get(check.scenario, {})
        where = f"{leg} {check.scenario}: {check.name}"
        if not check.passed and not excused:
            yield f"{where} is open ({check.status}): {check.said or 'no reason is given'}"
        if check.passed and excused:
            yield f"{where} passes: take it out of {FILE.name}"
    for scenario, names in reasons.items():
        for name in names:
            if (scenario, name) not in made:
                yield f"{leg} {scenario}: {name} was not checked: take it out of {FILE.name}"
