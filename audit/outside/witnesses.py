"""The witnesses whose cosignatures count, as LEDGER_WITNESSES names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from audit.verify import COSIGNATURE, Key, NoteError, parse_vkey


def read(words: Sequence[str]) -> tuple[Key, ...]:
    """The keys of the witnesses, each once; a word with a slash in front names a file with one. Raises
    ImproperlyConfigured.
    """
    keys = tuple(dict.fromkeys(_key(_content(each) if each.startswith("/") else each) for each in words))
    names = [each.name for each in keys]
    if double := next((each for each in names if names.count(each) > 1), None):
        raise ImproperlyConfigured(f"LEDGER_WITNESSES names {double} twice: give each witness a name of its own.")
    return keys


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(
            f"LEDGER_WITNESSES names the file {path}, which cannot be read: {error}."
            f" A witness writes its key there with: witness.py key --public {path}"
        ) from error


def _key(word: str) -> Key:
    try:
        key = parse_vkey(word)
    except NoteError as error:
        raise ImproperlyConfigured(f"LEDGER_WITNESSES: {error}.") from error
    if key.kind != COSIGNATURE:
        raise ImproperlyConfigured(
            f"LEDGER_WITNESSES: {key.name} is the key of a log, not of a witness: take what `witness.py key` prints."
        )
    return key
