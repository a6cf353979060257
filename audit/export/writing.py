"""Writes an export: records in parts, the heads and keys that prove them, and a signed manifest (docs/evidence.md)."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import IO, Any, Literal

import orjson
from django.db import connection
from django.utils import timezone

from audit.export.cells import HEADER, cells, csv_lines
from audit.export.lines import Line, json_line
from audit.export.signing import signature_over
from audit.export.targets import Target
from audit.retention.gaps import certificates
from audit.verify import time_text

FORMAT = "mcpsite-export/1"
Form = Literal["jsonl", "csv"]
# Files that programs read into memory, and rows that a spreadsheet can show.
_RECORDS_A_PART: Mapping[str, int] = {"jsonl": 50_000, "csv": 1_000_000}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class File:
    """A file as the manifest lists it."""

    name: str
    bytes: int
    sha256: str
    records: int


@dataclass(slots=True)
class Counted:
    """What was written so far: how many records, from which place of the tree to which."""

    records: int = 0
    unsealed: int = 0
    first_seq: int | None = None
    last_seq: int | None = None

    def add(self, line: Line) -> None:
        """One more."""
        self.records += 1
        if line.seq is None:
            self.unsealed += 1
            return
        self.first_seq = line.seq if self.first_seq is None else min(self.first_seq, line.seq)
        self.last_seq = line.seq if self.last_seq is None else max(self.last_seq, line.seq)

    @property
    def complete(self) -> bool:
        """Whether every record from the first to the last place is there; each has one place, so counting tells."""
        if self.first_seq is None or self.last_seq is None or self.unsealed:
            return False
        return self.records == self.last_seq - self.first_seq + 1


@dataclass(frozen=True, slots=True)
class Written:
    """What an export has become; `digest` is the SHA-256 of its manifest."""

    digest: bytes
    counted: Counted
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """How far an export is when a file of records is complete: from here another worker can go on."""

    files: tuple[File, ...]
    counted: Counted
    place: tuple[datetime, int]

    def as_json(self) -> dict[str, Any]:
        """To be kept."""
        at, number = self.place
        return {
            "files": [asdict(each) for each in self.files],
            "counted": asdict(self.counted),
            "place": [at.isoformat(), number],
        }

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Begun:
        """What was kept."""
        at, number = kept["place"]
        files = tuple(File(**each) for each in kept["files"])
        return cls(files, Counted(**kept["counted"]), (datetime.fromisoformat(at), number))


@dataclass(slots=True)
class Files:
    """Writes files to a target, and remembers them for the manifest."""

    target: Target
    listed: list[File] = field(default_factory=list)

    @contextmanager
    def file(self, name: str) -> Iterator[Tallied]:
        """A stream that counts and hashes; its `records` go into the manifest."""
        with self.target.file(name) as stream:
            tallied = Tallied(stream)
            yield tallied
        self.listed.append(File(name, tallied.size, tallied.digest.hexdigest(), tallied.records))

    def add(self, name: str, content: bytes, records: int = 0) -> None:
        """A whole file."""
        with self.file(name) as stream:
            stream.write(content)
            stream.records = records

    def close(self, manifest: Mapping[str, Any], purpose: str, sign: Callable[[bytes, str], str]) -> bytes:
        """Write the manifest with the files so far, and its signature. Returns the manifest's SHA-256."""
        raw = json.dumps({**manifest, "files": [asdict(each) for each in self.listed]}, indent=2).encode() + b"\n"
        with self.target.file("manifest.json") as stream:
            stream.write(raw)
        with self.target.file("manifest.sig") as stream:
            stream.write(sign(raw, purpose).encode())
        return hashlib.sha256(raw).digest()


class Tallied:
    """Passes bytes on, counted and hashed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = self.records = 0
        self.digest = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> int:
        """As a file does."""
        self._stream.write(content)
        self.size += len(content)
        self.digest.update(content)
        return len(content)

    def flush(self) -> None:
        """As a file does."""


# Adds files, given what was written so far and the origin of the ledger.
Further = Callable[[Files, Counted, str], None]


def _nothing(anything: object) -> None:
    """For who need not know."""


def write_export(
    target: Target,
    pages: Iterable[Sequence[Line]],
    *,
    form: Form = "jsonl",
    scope: str,
    by: str,
    purpose: str = "export",
    keys: Sequence[str],
    tell: Callable[[int], None] = _nothing,
    keep: Callable[[Begun], None] = _nothing,
    begun: Begun | None = None,
    sign: Callable[[bytes, str], str] = signature_over,
    created_at: datetime | None = None,
    further: Further = lambda files, counted, origin: None,
) -> Written:
    """Write the records, and what proves them, to `target`. `keys` are the vkeys of the ledger.

    `tell` is given the number of records after each page, `keep` how far it is after each file of records; what they
    raise ends the export. With `begun`, `pages` are those behind it. `further` adds files of its own.
    Raises SealerAway.
    """
    files = Files(target, list(begun.files) if begun else [])
    counted = write_records(files, pages, form, tell, keep=keep, counted=begun.counted if begun else None)
    heads = heads_for(counted)
    files.add("heads.jsonl", b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in heads))
    files.add("keys.txt", "".join(f"{key}\n" for key in keys).encode())
    if gaps := certificates(counted.first_seq, counted.last_seq):
        files.add("gaps.jsonl", b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in gaps))
    origin = heads[-1]["note"].partition("\n")[0] if heads else ""
    further(files, counted, origin)
    manifest = {
        "format": FORMAT,
        "purpose": purpose,
        "origin": origin,
        "created_at": time_text(created_at or timezone.now()),
        "by": by,
        "scope": scope,
        "records": counted.records,
        "unsealed": counted.unsealed,
        "complete": counted.complete,
        **({"first_seq": counted.first_seq, "last_seq": counted.last_seq} if counted.complete else {}),
    }
    digest = files.close(manifest, purpose, sign)
    return Written(digest, counted, tuple(files.listed))


def write_records(
    files: Files,
    pages: Iterable[Sequence[Line]],
    form: Form = "jsonl",
    tell: Callable[[int], None] = _nothing,
    keep: Callable[[Begun], None] = _nothing,
    counted: Counted | None = None,
) -> Counted:
    """Write the records in parts, as JSON lines compressed with gzip or as CSV, behind those in `files`."""
    counted, rest, number = counted or Counted(), iter(pages), len(files.listed)
    page = next(rest, None)
    while page is not None or number == 0:
        number += 1
        with _part(files, f"records-{number:05}", form) as (stream, write):
            while page is not None and stream.records < _RECORDS_A_PART[form]:
                write(page)
                stream.records += len(page)
                for line in page:
                    counted.add(line)
                tell(counted.records)
                last, page = page[-1], next(rest, None)
        if page is not None:
            keep(Begun(tuple(files.listed), counted, last.place))
    return counted


@contextmanager
def _part(files: Files, name: str, form: Form) -> Iterator[tuple[Tallied, Callable[[Sequence[Line]], object]]]:
    if form == "csv":
        with files.file(f"{name}.csv") as stream:
            stream.write(_BYTE_ORDER_MARK + csv_lines([HEADER]))
            yield stream, lambda page: stream.write(csv_lines([cells(line) for line in page]))
        return
    # Without name and time: so the same records make the same bytes.
    with files.file(f"{name}.jsonl.gz") as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as packed:
        yield stream, lambda page: packed.write(b"".join(map(json_line, page)))


def heads_for(counted: Counted) -> list[dict[str, Any]]:
    """The first heads that hold the first and the last of the records, the newest, and those between them in which a
    key hands over to the next, as `{"number", "note"}`.
    """
    statement = """
    WITH wanted (number) AS (
        (SELECT number FROM audit_head WHERE size > %(first)s ORDER BY size, number LIMIT 1)
        UNION (SELECT number FROM audit_head WHERE size > %(last)s ORDER BY size, number LIMIT 1)
        UNION SELECT since - 1 FROM audit_key
        UNION SELECT max(number) FROM audit_head
    ) SELECT number, note FROM audit_head JOIN wanted USING (number)
    WHERE size > %(first)s OR number = (SELECT max(number) FROM audit_head) ORDER BY number
    """
    with connection.cursor() as cursor:
        cursor.execute(statement, {"first": counted.first_seq, "last": counted.last_seq})
        return [{"number": number, "note": note} for number, note in cursor.fetchall()]
