"""A short campaign as `make chaos` does it: nothing acknowledged is lost, and no effect lacks its intent."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from bench.chaos.__main__ import campaign
from bench.chaos.site import Site
from bench.processes import Stage

CLIENTS = 16
CHEAP = ["postgres", "web", "sealer", "jobs", "redis", "frozen", "lock", "read-only"]


async def test_nothing_acknowledged_is_lost_and_nothing_happens_unannounced() -> None:
    with tempfile.TemporaryDirectory(prefix="mcpsite-survival-") as folder, Stage(Path(folder)) as stage:
        site = Site(stage, Path(folder) / "data", workers=2)
        site.start()
        results = await campaign(site, CHEAP, 1, CLIENTS, random.Random(4), closing=0)
    assert [problem for result in results.values() for problem in result.problems] == []
    assert [results[name].cycles for name in CHEAP] == [1] * len(CHEAP)
    assert sum(result.acknowledged for result in results.values()) > 500
