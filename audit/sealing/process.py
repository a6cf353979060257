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

from audit.sealing.heads import CannotSeal
from audit.sealing.keys import signers
from audit.sealing.sealer import Sealer
from audit.sealing.state import State
from keyring.keys import ring

logger = logging.getLogger("audit.sealing")

# From the start of one step to the start of the next: a record is sealed within twice that at the worst.
PACE_SECONDS = 0.2
_STANDBY_SECONDS = 1.0
_AGAIN_SECONDS = 2.0
_REFUSED_SECONDS = 5.0
_SESSION = "-c synchronous_commit=on -c statement_timeout=60000 -c lock_timeout=5000 -c timezone=UTC"


def run(conninfo: str, stop: Event) -> None:
    """Seal until `stop` is set."""
    said = ""
    while not stop.is_set():
        try:
            with connect(conninfo) as connection:
                _serve(connection, stop)
        except (CannotSeal, ImproperlyConfigured, ValueError, OSError) as error:
            if str(error) != said:
                logger.critical("the ledger is not sealed: %s", error)
            said = str(error)
            stop.wait(_REFUSED_SECONDS)
        except psycopg.Error as error:
            logger.warning("the sealer lost the database: %s", str(error).partition("\n")[0])
            stop.wait(_AGAIN_SECONDS)


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
            stop.wait(max(0.0, started + PACE_SECONDS - clock()))
