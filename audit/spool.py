"""Where records wait that the database did not take in time: a bounded file for each writer, on a disk that lasts.

An entry is its length (4 bytes, big-endian), the CRC-32 of what follows, and the row, encrypted and authenticated with
a key of the ring; with it goes the row of its data key, as long as the database lacks that. The place is reserved
beforehand, so that a full disk does not take it away when it is needed. The writer holds a lock on its file for as long
as it lives; a file without a lock belongs to nobody, and the next writer takes it over. Every method blocks for file
work: call them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from struct import Struct

from audit.durable import sync_folder
from audit.entry import ALL_COLUMNS, Row
from keyring.keys import DecryptionError, KeyRing

logger = logging.getLogger("audit.spool")

LIMIT_BYTES = 64 * 1024 * 1024
# About a thousand outcomes: more than a process has calls under way.
_RESERVED_BYTES = 1024 * 1024
_PURPOSE = "ledger-spool"
_HEAD, _COUNT, _FIELD = Struct("!II"), Struct("!B"), Struct("!i")
_SUFFIX, _ASIDE = ".spool", ".damaged"
_AT = [name for name, _ in ALL_COLUMNS].index("at")


@dataclass(slots=True)
class LeftKey:
    """The row of a data key that came with a record."""

    id: bytes
    parameters: tuple[bytes, ...]
    stored: bool = False


class SpoolFull(Exception):
    """There is no room left."""


class Spool:
    """The file of one writer."""

    def __init__(self, folder: Path, keys: KeyRing) -> None:
        self._folder = folder
        self._keys = keys
        self._path = folder / f"{uuid.uuid4()}{_SUFFIX}"
        self._file = -1
        self._end = 0
        self._using = threading.Lock()

    def open(self) -> None:
        """Make the file, and reserve its place on the disk. Raises OSError. Safe to repeat."""
        with self._using:
            self._open()

    def _open(self) -> None:
        if self._file >= 0:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It gets its name once it is locked: nobody must take it for one that was left behind.
        unnamed = self._path.with_suffix(".new")
        file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _reserve(file)
            unnamed.rename(self._path)
            sync_folder(self._folder)
        except OSError:
            os.close(file)
            unnamed.unlink(missing_ok=True)
            raise
        self._file = file

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows, on disk when it returns. Raises OSError and SpoolFull; then nothing was added."""
        data = b"".join(self._entry(row) for row in rows)
        with self._using:
            self._open()
            if self._end + len(data) > LIMIT_BYTES:
                raise SpoolFull(f"The spool holds no more than {LIMIT_BYTES} bytes.")
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fdatasync(self._file)
            self._end += len(data)

    def _entry(self, row: Row) -> bytes:
        sealed = self._keys.encrypt(_packed(row), purpose=_PURPOSE, context=b"")
        return _HEAD.pack(len(sealed), zlib.crc32(sealed)) + sealed

    def clear(self) -> None:
        """Forget all rows: they are in the database. Raises OSError."""
        with self._using:
            if self._end:
                os.ftruncate(self._file, 0)
                self._end = 0
                _reserve(self._file)

    def close(self) -> None:
        """Let go. A file with rows stays for whoever comes next."""
        with self._using:
            if self._file < 0:
                return
            if not self._end:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def left_behind(self) -> list[Left]:
        """The files of writers that have ended, each locked for us now; they are to be closed. Raises OSError.

        What cannot be opened keeps nobody from the others.
        """
        if not self._folder.is_dir():
            return []
        found = (_taken(path) for path in sorted(self._folder.glob(f"*{_SUFFIX}")) if path != self._path)
        return [Left(path, file, self._keys) for path, file in filter(None, found)]


@dataclass(frozen=True, slots=True)
class Left:
    """A file that a writer left behind."""

    path: Path
    file: int
    keys: KeyRing

    def read(self) -> tuple[list[Row], int]:
        """The rows that can be read, and how many bytes cannot: an entry that was cut off, or of another key.

        Raises OSError.
        """
        data = os.pread(self.file, LIMIT_BYTES, 0)
        rows, place, unread = [], 0, 0
        for sealed in _entries(data):
            try:
                rows.append(_unpacked(self.keys.decrypt(sealed, purpose=_PURPOSE, context=b"")))
            except (DecryptionError, ValueError) as error:
                logger.error("an entry of the spool %s cannot be opened: %s", self.path.name, error)
                unread += len(sealed)
            place += _HEAD.size + len(sealed)
        return rows, unread + len(data[place:].rstrip(b"\0"))

    def close(self, *, keep: bool) -> None:
        """Done with it. Raises OSError. With `keep` it stays for people, under a name that nobody takes over."""
        if keep:
            self.path.rename(self.path.with_suffix(_ASIDE))
        else:
            self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave it as it is."""
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is in all spools: records that the database lacks, when the file was last written to that was left alone for
    longest, and names of files with parts that nobody could read.
    """

    records: int
    since: datetime | None
    aside: tuple[str, ...]


def waiting(folder: Path) -> Waiting:
    """What waits there. Takes no locks, and changes nothing. Raises OSError."""
    records, times = 0, list[float]()
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            number, at = sum(1 for _ in _entries(path.read_bytes())), path.stat().st_mtime
            records += number
            times += [at] if number else []
    since = datetime.fromtimestamp(min(times), UTC) if times else None
    return Waiting(records, since, tuple(sorted(path.name for path in folder.glob(f"*{_ASIDE}"))))


def _taken(path: Path) -> tuple[Path, int] | None:
    """The file with its lock, unless its writer lives or somebody else was faster."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.error("the spool %s cannot be taken over: %s", path.name, error.strerror)
        return None
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return path, file
    os.close(file)
    return None


def _entries(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, place)
        sealed = data[place + _HEAD.size : place + _HEAD.size + length]
        if not length or len(sealed) < length or zlib.crc32(sealed) != checksum:
            return
        yield sealed
        place += _HEAD.size + length


def _packed(row: Row) -> bytes:
    """How many fields the record has, its fields, those of its key; each with its length, -1 for NULL."""
    key = row.key.parameters if row.key is not None and not row.key.stored else ()
    parts = (_FIELD.pack(-1) if field is None else _FIELD.pack(len(field)) + field for field in (*row.parameters, *key))
    return _COUNT.pack(len(row.parameters)) + b"".join(parts)


def _unpacked(data: bytes) -> Row:
    fields, place = list[bytes | None](), _COUNT.size
    while place < len(data):
        (length,) = _FIELD.unpack_from(data, place)
        place += _FIELD.size
        fields.append(None if length < 0 else data[place : place + length])
        place += max(0, length)
    (count,) = _COUNT.unpack_from(data)
    record, key = fields[:count], [field for field in fields[count:] if field is not None]
    if count > len(ALL_COLUMNS):
        raise ValueError("a later version of mcpsite wrote it")
    # A version before this one may have known fewer columns; leaf and MAC come last.
    missing = [None] * (len(ALL_COLUMNS) - count)
    whole = (*record[:-2], *missing, *record[-2:])
    rid, at = uuid.UUID(bytes=whole[0]), int.from_bytes(whole[_AT] or b"", signed=True)
    left = LeftKey(str(uuid.UUID(bytes=key[0])).encode(), tuple(key)) if key else None
    return Row(rid, at, whole, len(data), left)


def _reserve(file: int) -> None:
    """Set blocks aside. Where that cannot be done, the file grows when it has to."""
    try:
        os.posix_fallocate(file, 0, _RESERVED_BYTES)
        os.fsync(file)
    except OSError as error:
        logger.warning("no place could be reserved for the ledger's spool: %s", error)
