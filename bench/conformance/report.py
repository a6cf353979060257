"""One table for people: which scenarios pass on which leg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.conformance.suite import Check

Results = Mapping[str, list[Check]]


def table(results: Results) -> str:
    """Legs beside each other, a line for each scenario: checks that passed, of how many."""
    scenarios = sorted({check.scenario for checks in results.values() for check in checks})
    width = max(map(len, scenarios))
    lines = [f"{'scenario':{width}}  " + "  ".join(f"{leg:>10}" for leg in results)]
    for scenario in scenarios:
        cells = (_cell(check for check in checks if check.scenario == scenario) for checks in results.values())
        lines.append(f"{scenario:{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    totals = (_cell(checks) for checks in results.values())
    return "\n".join([*lines, f"{'all':{width}}  " + "  ".join(f"{cell:>10}" for cell in totals)])


def _cell(checks: Iterable[Check]) -> str:
    made = list(checks)
    passed = sum(check.passed for check in made)
    return "" if not made else f"{passed}/{len(made)}{'' if passed == len(made) else ' ✗'}"


def open_checks(results: Results) -> str:
    """A line for each check that is open, with what the suite said."""
    return "\n".join(
        f"{leg} {check.scenario}: {check.name} ({check.status}) {check.said}".rstrip()
        for leg, checks in results.items()
        for check in checks
        if not check.passed
    )
