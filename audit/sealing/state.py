"""What the sealer remembers outside of the database: the newest head that it made, to notice when an older database is
put in the place of the one it knew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from audit.durable import replace_file


class Known(NamedTuple):
    """The newest head that was made: its number, and the SHA-256 of its text."""

    number: int
    hash: bytes


class State:
    """A small file, replaced as a whole and written through to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Known | None:
        """What is remembered; None before the first time. Raises ValueError and OSError."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            found = json.loads(text)
            return Known(int(found["number"]), bytes.fromhex(found["hash"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not what the sealer wrote: {error}") from error

    def write(self, known: Known) -> None:
        """Remember it, so that it survives a loss of power."""
        replace_file(self.path, json.dumps({"number": known.number, "hash": known.hash.hex()}))
