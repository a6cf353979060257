"""Seals whatever it is given, at whatever time: for drills and tests that need a ledger with a past."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.verify import (
    COSIGNATURE,
    ED25519,
    FIRST_PREVIOUS,
    Head,
    Key,
    Note,
    Signature,
    Tree,
    manifest_text,
)

ORIGIN = "drill.example/ledger/0badc0de"


@dataclass
class Signer:
    """A private key under a name."""

    name: str = ORIGIN
    kind: int = ED25519
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def key(self) -> Key:
        """The public half."""
        return Key(self.name, self.kind, self.private.public_key().public_bytes_raw())

    def sign(self, text: str, at: int = 0) -> Signature:
        """The line under the text; `at` is the time of a cosignature."""
        message, stamp = text.encode(), b""
        if self.kind == COSIGNATURE:
            stamp = at.to_bytes(8)
            message = b"cosignature/v1\ntime %d\n" % at + message
        return Signature(self.name, self.key.id, stamp + self.private.sign(message))

    def note(self, text: str) -> str:
        """The text as a note."""
        return str(Note(text, (self.sign(text),)))

    def manifest(self, purpose: str, content: bytes) -> str:
        """What the sealer answers to who wants something signed."""
        return self.note(manifest_text(purpose, sha256(content).digest()))


@dataclass
class SmallSealer:
    """Remembers the rows that it made, by table."""

    signer: Signer = field(default_factory=Signer)
    tree: Tree = field(default_factory=Tree)
    blocks: Tree = field(default_factory=Tree)
    heads: list[Head] = field(default_factory=list)
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._block = Tree()
        self._add("audit_key", str(self.signer.key), 0)

    def leaves(self, records: Iterable[tuple[int, datetime, bytes]]) -> None:
        """Give records, as (id, time, leaf), their places."""
        for record, at, leaf in records:
            self._add("audit_leaf", self.tree.size, record, at, leaf)
            self.tree.append(leaf)
            self._block.append(leaf)
            if self._block.size == 256:
                for height, root in self.blocks.append_subtree(8, self._block.root):
                    if height % 8 == 0:
                        self._add("audit_node", height, (self.blocks.size >> height) - 1, root)
                self._block = Tree()

    def head(
        self, at: datetime, low_water: int = 0, further: Sequence[str] = (), successor: Signer | None = None
    ) -> Head:
        """Sign a head over what is there; with a successor, both sign and it signs from then on."""
        if successor:
            further = (*further, f"successor {successor.key}")
        number = len(self.heads)
        previous = self.heads[-1].hash if self.heads else FIRST_PREVIOUS
        head = Head(ORIGIN, self.tree.size, self.tree.root, number, previous, at, tuple(further))
        lines = [self.signer.sign(head.text), *([successor.sign(head.text)] if successor else [])]
        self.heads.append(head)
        note = str(Note(head.text, tuple(lines)))
        self._add("audit_head", number, head.size, head.root, previous, at, low_water, note)
        if successor:
            self.signer = successor
            self._add("audit_key", str(successor.key), number + 1)
        return head

    def cosign(self, witness: Signer) -> str:
        """Let a witness sign the newest head; returns the note with its line."""
        head = self.heads[-1]
        line = witness.sign(head.text, int(head.sealed_at.timestamp()) + 1)
        self._add("audit_cosignature", head.number, witness.name, str(line))
        return f"{self.rows['audit_head'][-1][-1]}{line}\n"

    def _add(self, table: str, *values: Any) -> None:
        self.rows.setdefault(table, []).append(values)


COLUMNS = {
    "audit_key": "vkey, since",
    "audit_leaf": "seq, record_id, at, leaf",
    "audit_node": "height, index, hash",
    "audit_head": "number, size, root, previous, sealed_at, low_water, note",
    "audit_cosignature": "head, witness, line",
}


def store(cursor: Any, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    """Write the rows of a sealer into the tables that the cursor's search path finds."""
    for table, columns in COLUMNS.items():
        with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for row in rows.get(table, []):
                copy.write_row(row)
