"""The process of the sealer: connects, becomes the one that seals or stands by, and goes on after every failure."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from audit.durability import SWITCHED_OFF, complaint
from audit.entry import uuid7
from audit.sealing.heads import CannotSeal, OlderState
from audit.sealing.keys import signers
from audit.sealing.kms import CannotSign
from audit.sealing.sealer import Sealer, write_record
from audit.sealing.state import State
from audit.verify import Head
from keyring.keys import ring

logger = logging.getLogger("audit.sealing")

# How long a record waits for its head at the worst, if one step takes as long as the one before.
PACE_SECONDS = 0.35
_STANDBY_SECONDS = 1.0
_AGAIN_SECONDS = 2.0
_REFUSED_SECONDS = 5.0
# Who worked for longer than that has not failed at the first attempt.
_LASTING_SECONDS = 60.0
_ATTEMPTS, _ATTEMPT_SECONDS = 20, 0.2
_SESSION = "-c synchronous_commit=on -c statement_timeout=60000 -c lock_timeout=5000 -c timezone=UTC"


def run(conninfo: str, stop: Event) -> None:
    """Seal until `stop` is set. Why it does not is said once, and again when it has worked in between."""
    said = ""
    while not stop.is_set():
        began = time.monotonic()
        try:
            refuse_forgetful(conninfo)
            with connect(conninfo) as connection:
                _serve(connection, stop)
        except (CannotSeal, CannotSign, ImproperlyConfigured, ValueError, OSError) as error:
            if str(error) != said or time.monotonic() - began > _LASTING_SECONDS:
                said = str(error)
                _complain(conninfo, said)
            stop.wait(_REFUSED_SECONDS)
        except psycopg.Error as error:
            logger.warning("the sealer lost the database: %s", str(error).partition("\n")[0])
            stop.wait(_AGAIN_SECONDS)


def _complain(conninfo: str, why: str) -> None:
    """In the log, and as a record, so that who sees only the site learns it; the record waits for its seal as well."""
    logger.critical("the ledger is not sealed: %s", why)
    try:
        with connect(conninfo) as connection:
            write_record(connection, ring(), uuid7(), CannotSeal.code, {"message": why})
    except (psycopg.Error, ImproperlyConfigured, OSError) as error:
        logger.warning("that it is not sealed is not on record: %s", str(error).partition("\n")[0])


def connect(conninfo: str) -> psycopg.Connection:
    """A connection of our own, whose end the server notices also when our machine is gone."""
    return psycopg.connect(
        conninfo,
        autocommit=True,
        options=_SESSION,
        connect_timeout=5,
        application_name="mcpsite sealer",
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
    )


def sealer_on(connection: psycopg.Connection) -> Sealer:
    """A sealer as the settings describe it."""
    host = urlsplit(settings.PUBLIC_URL).netloc
    return Sealer(connection, ring(), signers, state(), host)


def state() -> State:
    """Where the sealer remembers its newest head; raises ImproperlyConfigured."""
    path: Path | None = settings.LEDGER_STATE_FILE
    if path is None:
        raise ImproperlyConfigured(
            "LEDGER_STATE_FILE is not set: name a file outside of the database, for the newest head that was made."
        )
    return State(path)


def accept_restore(conninfo: str, reason: str) -> Head:
    """Go on from an older state of the database that was restored on purpose: returns the head that says so.

    Raises CannotSeal when there is nothing to accept, or something else than that in the way.
    """
    try:
        with connect(conninfo) as connection:
            return _go_on(sealer_on(connection), reason)
    except psycopg.Error as error:
        raise CannotSeal(f"PostgreSQL does not take it: {error}") from error


def _go_on(sealer: Sealer, reason: str) -> Head:
    _lock_between_attempts(sealer)
    try:
        sealer.open()
    except OlderState:
        sealer.open(after_restore=True)
        return sealer.accept_restore(reason, state().read())
    raise CannotSeal("The database has the newest head that the sealer made: there is nothing to accept.")


def _lock_between_attempts(sealer: Sealer) -> None:
    """A sealer that refuses lets go of the lock between its attempts; one that seals does not."""
    for _attempt in range(_ATTEMPTS):
        if sealer.lock():
            return
        time.sleep(_ATTEMPT_SECONDS)
    raise CannotSeal("A sealer is at work, so it has nothing to refuse: there is nothing to accept.")


def refuse_forgetful(conninfo: str) -> None:
    """Raise CannotSeal when PostgreSQL may forget what ordinary sessions have committed."""
    with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
        found = complaint(row[0] for row in connection.execute(SWITCHED_OFF))
    if found:
        raise CannotSeal(found)


def _serve(connection: psycopg.Connection, stop: Event, clock: Callable[[], float] = time.monotonic) -> None:
    sealer = sealer_on(connection)
    while not sealer.lock():
        logger.debug("another sealer is at work")
        if stop.wait(_STANDBY_SECONDS):
            return
    sealer.open()
    logger.info("sealing")
    while not stop.is_set():
        started = clock()
        if not sealer.step():
            stop.wait(max(0.0, PACE_SECONDS - 2 * (clock() - started)))
