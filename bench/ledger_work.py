"""What an installation is asked to do for a measurement of its ledger: write at full rate, and export. The answer is a
line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import django
import uvloop

# Two full commits: one is under way while the other gathers.
_CALLERS = 256
_EXPORT_SECONDS = 300.0
_RESULT = b'{"content":[{"type":"text","text":"call 100000000"}]}'


def write(seconds: float) -> dict[str, float]:
    """Records of one writer like that of a web worker, which has nothing else to do, as fast as they become durable."""
    from django.conf import settings

    from audit.ledger import Ledger
    from mcpsite.postgres import conninfo

    async def run() -> dict[str, float]:
        ledger = Ledger(conninfo(settings.LEDGER_DATABASES["writer"]))
        await ledger.start()
        while not ledger.available:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.01)
        started = time.monotonic()
        await asyncio.gather(*(_call(ledger, started + seconds) for _ in range(_CALLERS)))
        took = time.monotonic() - started
        await ledger.stop()
        return {"records": ledger.rows, "seconds": took, "commits": ledger.batches}

    return uvloop.run(run())


async def _call(ledger: object, until: float) -> None:
    from audit.entry import Entry, uuid7
    from audit.ledger import Ledger

    assert isinstance(ledger, Ledger)
    number = 0
    while time.monotonic() < until:
        number += 1
        entry = Entry(
            kind="call", code="ok", decision="allow", call_id=uuid7(), actor="person.1", actor_id="1",
            token="mcps_0000001", roles="support_agent", door="mcp", client="bench/1", address="127.0.0.1",
            connector="source-1", tool="tool_1", effect="read", definition=bytes(32), policy_version=1,
            request_id=os.urandom(16).hex(), arguments=b'{"text":"call %d"}' % number, result=_RESULT,
            upstream_us=400, total_us=600,
        )  # fmt: skip
        await ledger.write(entry)


def export(records: int) -> dict[str, float]:
    """The newest records as JSON lines, made by the job worker as whoever asks for it in the admin gets it."""
    from access.models import User
    from audit.export.asking import ask_for_export
    from audit.export.models import Export
    from audit.models import Record

    oldest = Record.objects.order_by("-at", "-id").values_list("at", flat=True)[records - 1]
    user = User.objects.filter(is_superuser=True).earliest("pk")
    made = ask_for_export("jsonl", {"since": oldest.isoformat()}, user=user, door="command")
    deadline = time.monotonic() + _EXPORT_SECONDS
    while not made.is_finished and time.monotonic() < deadline:
        time.sleep(0.1)
        made.refresh_from_db()
    if made.state != Export.State.DONE or made.started_at is None or made.finished_at is None:
        raise SystemExit(f"The export is {made.state}: {made.problem}")
    return {"records": made.records, "seconds": (made.finished_at - made.started_at).total_seconds()}


def main() -> None:
    """Work on the installation that the environment names."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=("write", "export"))
    parser.add_argument("amount", type=float, help="seconds of writing, or records to export")
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()
    print(json.dumps(write(options.amount) if options.what == "write" else export(int(options.amount))))


if __name__ == "__main__":
    main()
