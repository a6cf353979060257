"""`python -m bench.verifying`: how long the verifier takes over a ledger of a million records, and what memory."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from audit.verify import COLUMNS
from bench.small_sealer import SmallSealer, store
from bench.tamper import make_row, own_postgres

_GROUP, _GROUPS_AT_ONCE = 100, 500
_PROGRAM = Path(__file__).resolve().parent.parent / "audit" / "verify.py"


def fill(url: str, rows: int) -> str:
    """Write so many sealed records, a head over each hundred; the key that signed."""
    sealer, random_ = SmallSealer(), random.Random(7)
    key, writer = str(sealer.signer.key), UUID(int=7)
    start = datetime.now(UTC) - timedelta(hours=1)
    names = ", ".join(("id", *(name for name, _ in COLUMNS), "leaf", "mac"))
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        for first in range(1, rows + 1, _GROUP * _GROUPS_AT_ONCE):
            made: list[dict[str, Any]] = []
            for number in range(first, min(first + _GROUP * _GROUPS_AT_ONCE, rows + 1)):
                at = start + timedelta(microseconds=number * 3000)
                made.append({"id": number, **make_row(random_, at, writer, number)})
                sealer.leaves([(number, at, made[-1]["leaf"])])
                if number % _GROUP == 0 or number == rows:
                    sealer.head(at + timedelta(milliseconds=300), number)
            with cursor.copy(f"COPY audit_record ({names}) FROM STDIN") as copy:
                for row in made:
                    copy.write_row(list(row.values()))
            store(cursor, sealer.rows)
            sealer.rows.clear()
        cursor.execute("ANALYZE")
    return key


def main() -> int:
    """Print what was measured; the verifier's exit code."""
    parser = argparse.ArgumentParser("python -m bench.verifying", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="records (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    options = parser.parse_args()
    with own_postgres() as url:
        started = time.monotonic()
        key = fill(url, options.rows)
        print(f"{options.rows:,} records written and sealed in {time.monotonic() - started:.0f} s", flush=True)
        started = time.monotonic()
        command = [sys.executable, str(_PROGRAM), "database", "--url", url, "--key", key, "--jobs", str(options.jobs)]
        running = subprocess.Popen(command)
        _, status, usage = os.wait4(running.pid, 0)
        took = time.monotonic() - started
    print(f"verified in {took:.1f} s with {options.jobs} processes; {usage.ru_maxrss / 1024:.0f} MB in the first")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
