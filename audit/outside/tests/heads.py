"""Puts the heads of a log where the sealer puts them: into temporary tables that stand before those of the site."""

from __future__ import annotations

from typing import Any

from django.db import connection

from audit.outside.models import Contradiction
from audit.tests.logs import Log
from audit.witness import Signer


def empty() -> None:
    """Tables without heads, which the site's role may fill, and which go with the transaction."""
    with connection.cursor() as cursor:
        for table in ("audit_head", "audit_key", "audit_cosignature", "audit_anchor"):
            cursor.execute(f"CREATE TEMPORARY TABLE {table} (LIKE public.{table} INCLUDING ALL)")


def store(log: Log, first: int = 0) -> None:
    with connection.cursor() as cursor:
        for head, note in log.heads[first:]:
            cursor.execute(
                "INSERT INTO audit_head (number, size, root, previous, sealed_at, low_water, note)"
                " VALUES (%s, %s, %s, %s, %s, 0, %s)",
                [head.number, head.size, head.root, head.previous, head.sealed_at, note],
            )


def cosigned(log: Log, number: int, signer: Signer, at: int = 1_790_000_000) -> str:
    """The note of a head with the signature of a witness under it."""
    head, note = log.heads[number]
    return f"{note}{signer.cosign(head.text, at)}\n"


def codes() -> list[tuple[str, str, int]]:
    return list(Contradiction.objects.order_by("id").values_list("source", "code", "head"))


def signers(settings: Any, *names: str) -> list[Signer]:
    """Witnesses of these names, which the settings know."""
    found = [Signer.new(name) for name in names]
    settings.LEDGER_WITNESSES = tuple(each.public for each in found)
    return found
