"""Exchanging the key that signs: a new one is put in front, and the sealer hands over to it under a head of both."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings

from audit.durable import replace_file
from audit.sealing.keys import Signer, parse
from audit.sealing.kms import KmsSigner, public_key


def new_entry(others: Sequence[Signer]) -> str:
    """An entry for LEDGER_SIGNING_KEYS with a key of its own and the next free id."""
    return f"{_free_name(others)}:{base64.urlsafe_b64encode(os.urandom(32)).decode()}"


def kms_entry(others: Sequence[Signer], arn: str, endpoint: str | None) -> str:
    """An entry for a key of AWS KMS, which may sign and whose public half KMS has told. Raises CannotSign."""
    signer = KmsSigner(_free_name(others), arn, public_key(arn, endpoint), endpoint)
    signer.examine()
    return str(signer)


def _free_name(others: Sequence[Signer]) -> str:
    numbers = (each.name[1:] for each in others if each.name[:1] == "s")
    return f"s{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"


def path() -> Path | None:
    """The file that holds the keys; None when a variable does, which no command can change."""
    found: Path | None = settings.LEDGER_SIGNING_KEYS_PATH()
    return found


def put_in_front(entry: str, file: Path) -> None:
    """Let the file begin with the entry: it is replaced as a whole, and keeps its mode. Raises OSError."""
    before = file.read_text(encoding="utf-8").strip()
    parse(f"{entry},{before}")
    replace_file(file, f"{entry},{before}\n", file.stat().st_mode & 0o777)
