"""Exchanging the key that signs: a new one is put in front, and the sealer hands over to it under a head of both."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from django.conf import settings

from audit.durable import replace_file
from audit.sealing.keys import SeedSigner, parse


def new_entry(others: list[SeedSigner]) -> str:
    """An entry for LEDGER_SIGNING_KEYS with a key of its own and the next free id."""
    numbers = (each.name[1:] for each in others if each.name[:1] == "s")
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"s{last + 1}:{base64.urlsafe_b64encode(os.urandom(32)).decode()}"


def path() -> Path | None:
    """The file that holds the keys; None when a variable does, which no command can change."""
    found: Path | None = settings.LEDGER_SIGNING_KEYS_PATH()
    return found


def put_in_front(entry: str, file: Path) -> None:
    """Let the file begin with the entry: it is replaced as a whole, and keeps its mode. Raises OSError."""
    before = file.read_text(encoding="utf-8").strip()
    parse(f"{entry},{before}")
    replace_file(file, f"{entry},{before}\n", file.stat().st_mode & 0o777)
