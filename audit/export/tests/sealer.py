"""A sealer in a few lines, for tests: seals what is committed, and signs what it is asked to, as the owner may."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from django.db import connections

from audit.verify import FIRST_PREVIOUS, Head, manifest_text, parse_head, parse_note
from bench.small_sealer import Signer, SmallSealer

ORIGIN = "tests.example/ledger/00000001"


class TestSealer:
    """Goes on from whatever the database holds."""

    __test__ = False

    def __init__(self) -> None:
        self._signer = Signer(ORIGIN)
        self.key = self._signer.key

    def sign(self, manifest: bytes, purpose: str) -> str:
        """Stands for `signature_over`."""
        return self._signer.manifest(purpose, manifest)

    def seal(self) -> Head:
        """Give every record its place, and sign a head."""
        with connections["owner"].cursor() as cursor:
            cursor.execute(
                "INSERT INTO audit_leaf (seq, record_id, at, leaf)"
                " SELECT (SELECT count(*) FROM audit_leaf) - 1 + row_number() OVER (ORDER BY id), id, at, leaf"
                " FROM audit_record WHERE id NOT IN (SELECT record_id FROM audit_leaf)"
            )
            cursor.execute("SELECT record_id, at, leaf FROM audit_leaf ORDER BY seq")
            made = SmallSealer(self._signer)
            made.leaves((record, at, bytes(leaf)) for record, at, leaf in cursor.fetchall())
            tree = made.tree
            cursor.executemany(
                "INSERT INTO audit_node (height, index, hash) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                made.rows.get("audit_node", []),
            )
            cursor.execute("SELECT number, note FROM audit_head ORDER BY number DESC LIMIT 1")
            last = cursor.fetchone()
            previous = parse_head(parse_note(last[1]).text).hash if last else FIRST_PREVIOUS
            number = last[0] + 1 if last else 0
            head = Head(ORIGIN, tree.size, tree.root, number, previous, datetime.now(UTC))
            cursor.execute(
                "INSERT INTO audit_head (number, size, root, previous, sealed_at, low_water, note)"
                " VALUES (%s, %s, %s, %s, %s, 0, %s)",
                [number, tree.size, tree.root, previous, head.sealed_at, self._signer.note(head.text)],
            )
        return head

    def publish(self) -> None:
        """Make the key known."""
        with connections["owner"].cursor() as cursor:
            cursor.execute(
                "INSERT INTO audit_key (vkey, since) SELECT %s, coalesce(max(number), 0) FROM audit_head",
                [str(self.key)],
            )

    @contextmanager
    def at_work(self) -> Iterator[TestSealer]:
        """Seals and answers in a thread of its own, for as long as the block lasts."""
        self.publish()
        done = threading.Event()

        def serve() -> None:
            while not done.wait(0.02):
                self.seal_new()
                self.answer()
            connections["owner"].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def seal_new(self) -> None:
        """Seal when there is something."""
        with connections["owner"].cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM audit_record WHERE id NOT IN (SELECT record_id FROM audit_leaf))"
            )
            if cursor.fetchone():
                self.seal()

    def answer(self) -> int:
        """Sign what was asked for and not signed yet. Returns how much."""
        with connections["owner"].cursor() as cursor:
            cursor.execute(
                "SELECT id, purpose, digest FROM audit_signing_request"
                " WHERE id NOT IN (SELECT request FROM audit_signature)"
            )
            asked = cursor.fetchall()
            for request, purpose, digest in asked:
                note = self._signer.note(manifest_text(purpose, bytes(digest)))
                cursor.execute("INSERT INTO audit_signature (request, note) VALUES (%s, %s)", [request, note])
        return len(asked)


def digest_said(note: str) -> bytes:
    """The digest that a signature of a manifest is about."""
    return base64.b64decode(note.splitlines()[2])
