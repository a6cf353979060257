"""What befalls the installation: each fault is done, lasts a while, and is over when its function returns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.chaos.site import Site
from mcpsite.datadir import SUPERUSER

POSTGRES, VALKEY = r"bin/postgres -", r"valkey-server"
_WEB = r"mcpsite\.web"
_EVERY_POSTGRES = r"bin/postgres -|^postgres: "
_KEEP_FREE = 64 * 1024
DISK_MB = 2048

Fault = Callable[[Site, random.Random], None]


def _killed(pattern: str) -> Fault:
    """SIGKILL to one of the processes that match."""

    def fault(site: Site, dice: random.Random) -> None:
        if victims := site.processes(pattern):
            site.send(signal.SIGKILL, [dice.choice(victims)])

    return fault


def _frozen(pattern: str, least: float, most: float) -> Fault:
    """All processes that match stand still for a while: they are there, and do not answer."""

    def fault(site: Site, dice: random.Random) -> None:
        victims = site.processes(pattern)
        site.send(signal.SIGSTOP, victims)
        time.sleep(dice.uniform(least, most))
        site.send(signal.SIGCONT, victims)

    return fault


def _all_killed(site: Site, dice: random.Random) -> None:
    """SIGKILL to all that runs, as if the power had failed; what starts them again stays."""
    site.send(signal.SIGKILL, site.processes(rf"{POSTGRES}|{VALKEY}|{_WEB}|manage\.py worker"))


def _killed_in_need(site: Site, dice: random.Random) -> None:
    """PostgreSQL stands still until outcomes go to the spool, and then the web workers die."""
    victims = site.processes(_EVERY_POSTGRES)
    site.send(signal.SIGSTOP, victims)
    time.sleep(dice.uniform(1.2, 2.5))
    site.send(signal.SIGKILL, site.processes(_WEB))
    site.send(signal.SIGCONT, victims)


def _locked(site: Site, dice: random.Random) -> None:
    """Somebody alters the table of the ledger, again and again."""
    for _ in range(3):
        with site.database() as connection, connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '10s'")
            connection.execute("LOCK TABLE audit_record IN ACCESS EXCLUSIVE MODE")
            time.sleep(dice.uniform(0.3, 2.0))


def _read_only(site: Site, dice: random.Random) -> None:
    """Every transaction that begins may only read."""
    with site.database(SUPERUSER) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        time.sleep(dice.uniform(1.0, 3.0))
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


def _disk_full(site: Site, dice: random.Random) -> None:
    """Nothing is left on the disk that holds the database, the spool and everything else."""
    filler = site.folder.path / "filler"
    try:
        with filler.open("wb") as file:
            free = os.statvfs(site.folder.path)
            size = max(0, free.f_bavail * free.f_frsize - _KEEP_FREE)
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
            time.sleep(dice.uniform(2.0, 4.0))
    finally:
        filler.unlink(missing_ok=True)


FAULTS: dict[str, tuple[str, Fault]] = {
    "postgres": ("kill -9 of PostgreSQL", _killed(POSTGRES)),
    "web": ("kill -9 of a web worker", _killed(_WEB)),
    "sealer": ("kill -9 of the sealer", _killed(r"worker sealer")),
    "jobs": ("kill -9 of the job worker", _killed(r"worker jobs")),
    "agents": ("kill -9 of the agent worker", _killed(r"worker agents")),
    "all": ("kill -9 of everything at once", _all_killed),
    "need": ("kill -9 while records are in spools", _killed_in_need),
    "redis": ("kill -9 of Valkey", _killed(VALKEY)),
    "redis-away": ("Valkey does not answer", _frozen(VALKEY, 1.0, 3.0)),
    "frozen": ("PostgreSQL does not answer", _frozen(_EVERY_POSTGRES, 0.5, 4.0)),
    "lock": ("the ledger's table is locked", _locked),
    "read-only": ("PostgreSQL only reads", _read_only),
    "disk": ("the disk is full", _disk_full),
}


def small_disk(folder: Path) -> bool:
    """Make the folder a disk of its own that can be filled. Only root can do that; False when it cannot be done."""
    size = f"size={DISK_MB}m,mode=0755"
    command = ["mount", "-t", "tmpfs", "-o", size, "mcpsite-chaos", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def give_back(folder: Path) -> None:
    """Undo `small_disk`."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)
