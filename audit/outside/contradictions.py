"""Takes down what a witness or an anchor holds against the ledger, and says what of it is not settled."""

from __future__ import annotations

import logging
from datetime import datetime
from hashlib import sha256
from typing import Any

from django.db import connection, transaction

from audit.changes import record_event
from audit.models import Record
from audit.outside.ages import EXPLAINED, UNEXPLAINED
from audit.outside.models import Contradiction
from audit.verify import Head, Note

logger = logging.getLogger("audit.outside")

OPEN = f"SELECT source, code, head, at {UNEXPLAINED} ORDER BY id DESC LIMIT 20"
_INSERT = """
INSERT INTO audit_contradiction (source, code, head, sealed_at, note, digest) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (source, digest) DO NOTHING RETURNING id
"""
_KNOWN = "SELECT id FROM audit_contradiction WHERE source = %s AND digest = %s"


class NotContradicted(Exception):
    """The ledger stands by this very head; the text is a sentence for people."""

    code = "not_contradicted"


def take_down(source: str, code: str, note: Note, head: Head, *, door: str, request: Any = None) -> tuple[int, bool]:
    """Keep that `source` holds this head, and record it; its id, and whether it is new. Raises NotContradicted.

    Whoever calls has checked who signed the note.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT note FROM audit_head WHERE number = %s", [head.number])
        row = cursor.fetchone()
        if code != Contradiction.Code.INCONSISTENT and row is not None and row[0].startswith(note.text + "\n"):
            raise NotContradicted(f"The ledger has head {head.number}, just as it was signed.")
        digest = sha256(note.text.encode()).digest()
        cursor.execute(_INSERT, [source, code, head.number, head.sealed_at, str(note), digest])
        if (row := cursor.fetchone()) is None:
            cursor.execute(_KNOWN, [source, digest])
            return cursor.fetchone()[0], False
        detail = {"source": source, "head": head.number, "size": head.size, "sealed_at": head.sealed_at.isoformat()}
        record_event(Record.Kind.SYSTEM, code, door=door, request=request, detail=detail)
    logger.critical("%s holds head %d against the ledger: %s", source, head.number, code)
    return row[0], True


def settled(sealed_at: datetime) -> bool:
    """Whether a head with a signed `break` explains that a head of that time is missing."""
    with connection.cursor() as cursor:
        cursor.execute(EXPLAINED, [sealed_at])
        return bool(cursor.fetchone()[0])


def unsettled() -> list[tuple[str, str, int, Any]]:
    """(source, code, number of the head, since when) of what no break explains, the newest first."""
    with connection.cursor() as cursor:
        cursor.execute(OPEN)
        return list(cursor.fetchall())
