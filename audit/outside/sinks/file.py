"""Anchors heads in a file that only grows: one JSON object a line."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, unquote

from audit.durable import sync_folder
from audit.outside.sinks.base import Anchored, Receipt, SinkFailed

FILE = "heads.jsonl"
# More than any head is long.
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FileSink:
    """A directory, e.g. one that another machine mounts, or on a medium that is written once."""

    folder: Path

    @classmethod
    def of(cls, parts: SplitResult, options: dict[str, str]) -> FileSink:
        """Raises ValueError."""
        folder = Path(unquote(parts.path))
        if parts.netloc or options or not folder.is_absolute():
            raise ValueError("a file sink is file:// and an absolute path, without options")
        return cls(folder)

    @property
    def name(self) -> str:
        """`file:///directory`."""
        return self.folder.as_uri()

    def put(self, anchored: Anchored, sequence: int) -> Receipt:
        """Append a line, and return when it is on disk; its place is the receipt."""
        try:
            with self._opened() as file:
                return self._append(file, anchored)
        except OSError as error:
            raise SinkFailed(f"{self.folder / FILE} cannot be written: {error.strerror}.") from error

    def _opened(self) -> IO[bytes]:
        """The file, locked. The directory is not made: it may be one that is not mounted."""
        descriptor = os.open(self.folder / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return os.fdopen(descriptor, "r+b", buffering=0)

    def _append(self, file: IO[bytes], anchored: Anchored) -> Receipt:
        offset = file.seek(0, os.SEEK_END)
        tail, begins = _tail(file, offset)
        if tail and (last := _parsed(tail[-1])) and last.get("note") == anchored.note:
            return {"file": FILE, "offset": begins, "number": anchored.head.number}
        head = anchored.head
        line = {"origin": head.origin, "number": head.number, "size": head.size, "note": anchored.note}
        # A line that a crash has torn gets its end, and is passed over by whoever reads.
        torn = b"" if not offset or _ends_whole(file, offset) else b"\n"
        os.write(file.fileno(), torn + json.dumps(line, ensure_ascii=False).encode() + b"\n")
        os.fsync(file.fileno())
        if not offset:
            sync_folder(self.folder)
        return {"file": FILE, "offset": offset + len(torn), "number": head.number}

    def newer(self, origin: str, than: Anchored | None) -> str | None:
        """The last line of this log."""
        try:
            with (self.folder / FILE).open("rb") as file:
                lines, _ = _tail(file, file.seek(0, os.SEEK_END))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SinkFailed(f"{self.folder / FILE} cannot be read: {error.strerror}.") from error
        notes = [each["note"] for each in map(_parsed, lines) if each and each.get("origin") == origin]
        return None if not notes or (than and notes[-1] == than.note) else str(notes[-1])


def _tail(file: IO[bytes], size: int) -> tuple[list[bytes], int]:
    """The last whole lines of the file, and where the very last begins."""
    begin = max(0, size - _TAIL_BYTES)
    file.seek(begin)
    raw = file.read(_TAIL_BYTES)
    if begin:
        cut = raw.find(b"\n") + 1
        raw, begin = raw[cut:], begin + cut
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    return lines, begin + len(whole) - (len(lines[-1]) if lines else 0)


def _ends_whole(file: IO[bytes], size: int) -> bool:
    file.seek(size - 1)
    return file.read(1) == b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("note"), str) else None
