"""Cold exports: the records of a month, compressed, with a signed manifest, written to the archive and read back.

An export that was broken off goes on where it was: its parts are made anew from the same records, so they have the same
bytes, and what is there already is not sent again. Nothing counts as archived before it was read back whole.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued

from audit.changes import record_event
from audit.export.lines import Line, pages
from audit.export.signing import signature_over
from audit.export.writing import Written, write_export
from audit.models import Record
from audit.proofs.documents import keys
from audit.retention import gaps
from audit.retention.models import Archive
from audit.retention.stores import Store, StoreError, store_at, store_for
from audit.verify import NoteError, check_note, fields_of, leaves_of, manifest_text, parse_note

logger = logging.getLogger("audit.archive")

PURPOSE, TASK = "archive", "audit.archive"
SIGNATURE_SECONDS = 60.0
# A job that gave no sign of life for so long has died.
LOST_SECONDS = 120
_TELL_SECONDS = 1.0
_MOST_STRAYS = 10_000
_LONGEST_MANIFEST = 64 * 1024 * 1024
_LINES_AT_ONCE = 1_000


class ArchiveRefused(Exception):
    """The month cannot be archived; the message says why."""

    code = "archive_refused"


class NotProven(Exception):
    """What was read back from the archive is not what was written, or not what the ledger has sealed."""

    code = "archive_not_proven"


# --- Asking -----------------------------------------------------------------------------------------------------------


def ask(month: date, *, door: str, request: Any = None, actor: Any = None) -> Archive:
    """Begin an export of the month, or go on with the one that failed. The job `run` does the rest."""
    if not settings.LEDGER_ARCHIVE:
        raise ArchiveRefused("There is no archive: set LEDGER_ARCHIVE to file:///folder or s3://bucket/prefix.")
    now = gaps.count(month)
    if month_ends(month) > timezone.now():
        raise ArchiveRefused(f"{month:%B %Y} is not over.")
    if not now.records:
        raise ArchiveRefused(f"The ledger has no records of {month:%B %Y}.")
    if now.unsealed:
        raise ArchiveRefused(f"{now.unsealed} records of {month:%B %Y} are not sealed: is the sealer running?")
    user = actor if actor is not None else getattr(request, "user", None)
    with transaction.atomic():
        if Archive.objects.select_for_update().filter(month=month, state__in=_UNDER_WAY).exists():
            raise ArchiveRefused(f"An export of {month:%B %Y} is under way.")
        archive = Archive.objects.filter(month=month, state=Archive.State.FAILED).order_by("-asked_at").first()
        archive = archive or Archive(month=month)
        archive.state, archive.error = Archive.State.WAITING, ""
        archive.total, archive.written, archive.files, archive.resent, archive.bytes = now.records, 0, 0, 0, 0
        archive.asked_by = user.get_username() if user is not None else door
        archive.asked_at, archive.beat_at, archive.finished_at = timezone.now(), None, None
        archive.place = _store(archive).place
        archive.save()
        _record(archive, code="archive_begun", door=door, request=request, actor=actor)
        queue(archive)
    return archive


def _store(archive: Archive) -> Store:
    return store_for(settings.LEDGER_ARCHIVE or "", f"{archive.month:%Y-%m}/{archive.pk}")


def queue(archive: Archive) -> None:
    """Have a job work on it, unless one waits for that already."""
    name = f"{TASK}.{archive.pk}"
    with contextlib.suppress(AlreadyEnqueued), transaction.atomic():
        app.configure_task(TASK, queueing_lock=name).defer(archive_id=str(archive.pk))


_UNDER_WAY = (Archive.State.WAITING, Archive.State.RUNNING)


def month_begins(month: date) -> datetime:
    """Its first moment, UTC."""
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def month_ends(month: date) -> datetime:
    """The first moment after it, UTC."""
    year, index = divmod(month.year * 12 + month.month, 12)
    return datetime(year, index + 1, 1, tzinfo=UTC)


def lost() -> list[Archive]:
    """Exports whose job has died, or was never begun."""
    since = timezone.now() - timedelta(seconds=LOST_SECONDS)
    waiting = Archive.objects.filter(state__in=_UNDER_WAY)
    return [each for each in waiting if (each.beat_at or each.asked_at) < since]


# --- Doing ------------------------------------------------------------------------------------------------------------


def run(archive: Archive, *, door: str = "job", sign: Callable[[bytes, str], str] | None = None) -> Archive:
    """Write the export, read it back, and say how it ended. Only one process at a time works on it."""
    with _alone(archive) as mine:
        if not mine:
            return archive
        archive.refresh_from_db()
        if archive.state not in _UNDER_WAY:
            return archive
        try:
            _carry_out(archive, sign or _signed)
        except Exception as error:
            known = isinstance(error, (StoreError, NotProven)) or hasattr(error, "code")
            if not known:
                logger.exception("the export of %s failed", archive.month)
            said = str(error) if known else "Something went wrong that nobody foresaw; the log says more."
            _end(archive, Archive.State.FAILED, door, code="archive_failed", error=said)
            return archive
        _end(archive, Archive.State.VERIFIED, door, code="archive_verified")
        return archive


@contextlib.contextmanager
def _alone(archive: Archive) -> Iterator[bool]:
    key = int.from_bytes(archive.pk.bytes[:8], signed=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
        mine = cursor.fetchone()[0]
        try:
            yield mine
        finally:
            if mine:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [key])


def _signed(manifest: bytes, purpose: str) -> str:
    return signature_over(manifest, purpose, SIGNATURE_SECONDS)


def _carry_out(archive: Archive, sign: Callable[[bytes, str], str]) -> None:
    store = _store(archive)
    telling = Telling(archive)
    now = gaps.count(archive.month)
    telling.say(state=Archive.State.RUNNING, place=store.place, total=now.records, files=0, resent=0, bytes=0)
    with tempfile.TemporaryDirectory(prefix="mcpsite-archive-") as spool:
        written = _write(archive, store, Path(spool), telling, sign)
    manifest = written.digest.hex()
    proven = read_back(store, manifest, keys(), beat=telling.beat)
    expected = sealed_in(archive.month)
    if missing := expected - proven.records_of(archive.month):
        raise NotProven(f"{missing} sealed records of the month are not in what was read back.")
    telling.say(
        manifest=manifest,
        written=written.counted.records,
        first_seq=written.counted.first_seq,
        last_seq=written.counted.last_seq,
    )


def _write(archive: Archive, store: Store, spool: Path, telling: Telling, sign: Callable[[bytes, str], str]) -> Written:
    return write_export(
        Sent(store, spool, telling),
        records_of(archive.month),
        scope=f"the records of {archive.month:%Y-%m}",
        by=archive.asked_by,
        purpose=PURPOSE,
        keys=keys(),
        tell=telling.records,
        sign=sign,
    )


def records_of(month: date) -> Iterator[Sequence[Line]]:
    """The sealed records of the month, and those of its neighbours that were sealed in between, so that none is missing
    from the first place of the tree to the last.
    """
    begin, end = month_begins(month), month_ends(month)
    before, after = _strays(month, begin, end)
    return chain(
        pages(Record.objects.filter(pk__in=before, at__lt=begin)) if before else (),
        pages(Record.objects.filter(at__gte=begin, at__lt=end)),
        pages(Record.objects.filter(pk__in=after, at__gte=end)) if after else (),
    )


def _strays(month: date, begin: datetime, end: datetime) -> tuple[list[int], list[int]]:
    now = gaps.count(month)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT record_id, at < %s FROM audit_leaf"
            " WHERE seq BETWEEN %s AND %s AND NOT (at >= %s AND at < %s) LIMIT %s",
            [begin, now.first_seq, now.last_seq, begin, end, _MOST_STRAYS + 1],
        )
        found = cursor.fetchall()
    if len(found) > _MOST_STRAYS:
        return [], []
    return [number for number, early in found if early], [number for number, early in found if not early]


def sealed_in(month: date) -> int:
    """How many sealed records of the month there are."""
    now = gaps.count(month)
    return now.records - now.unsealed


class Telling:
    """Says how far an export is, at most once a second, so that it can be watched and its death be noticed."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._told = 0.0

    def records(self, number: int) -> None:
        """So many are written."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.say(written=number)

    def beat(self) -> None:
        """Still there."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.say()

    def say(self, **state: Any) -> None:
        """Write it down now."""
        Archive.objects.filter(pk=self._archive.pk).update(beat_at=timezone.now(), **state)
        self._archive.refresh_from_db()
        self._told = time.monotonic()


@dataclass(frozen=True, slots=True)
class Sent:
    """A target of `write_export` that spools each file, and sends what the store does not have."""

    store: Store
    spool: Path
    telling: Telling

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """Complete when the block ends without an error."""
        path = self.spool / name
        with path.open("wb") as stream:
            yield stream
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        known = self.store.has(name, digest, size)
        if not known:
            self.store.put(name, path, digest)
        path.unlink()
        self.telling.say(files=F("files") + 1, resent=F("resent") + int(known), bytes=F("bytes") + size)


# --- Reading back -----------------------------------------------------------------------------------------------------


_BLOCK = 1 << 16


@dataclass(slots=True)
class Proven:
    """The places in the tree of every record that an export was found to hold, a bit for each."""

    records: int = 0
    months: dict[str, int] = field(default_factory=dict)
    _blocks: dict[int, bytearray] = field(default_factory=dict)

    def add(self, seq: int, at: str) -> None:
        """One more. Raises NotProven when it was there already."""
        block = self._blocks.setdefault(seq // _BLOCK, bytearray(_BLOCK // 8))
        place, bit = seq % _BLOCK >> 3, 1 << (seq & 7)
        if block[place] & bit:
            raise NotProven(f"Record {seq} of the tree is there twice.")
        block[place] |= bit
        self.records += 1
        self.months[at[:7]] = self.months.get(at[:7], 0) + 1

    def has(self, seq: int) -> bool:
        """Whether the record is there."""
        block = self._blocks.get(seq // _BLOCK)
        return block is not None and bool(block[seq % _BLOCK >> 3] & 1 << (seq & 7))

    def records_of(self, month: date) -> int:
        """How many records of the month there are."""
        return self.months.get(f"{month:%Y-%m}", 0)


def read_back(store: Store, manifest: str, vkeys: Sequence[str], *, beat: Callable[[], None] = lambda: None) -> Proven:
    """Read the whole export: the signed manifest with this SHA-256, each file, each record against its leaf, and each
    leaf against the ledger's own. Raises NotProven or StoreError.
    """
    raw = _whole(store, "manifest.json")
    if hashlib.sha256(raw).hexdigest() != manifest:
        raise NotProven("manifest.json is not the one that was signed.")
    _check_signature(_whole(store, "manifest.sig").decode("utf-8", "replace"), hashlib.sha256(raw).digest(), vkeys)
    said, proven = orjson.loads(raw), Proven()
    for each in said["files"]:
        _read_file(store, each, proven, beat)
    if proven.records != said["records"]:
        raise NotProven(f"The manifest speaks of {said['records']} records, and {proven.records} are there.")
    return proven


def _whole(store: Store, name: str) -> bytes:
    with store.open(name) as stream:
        raw = stream.read(_LONGEST_MANIFEST + 1)
    if len(raw) > _LONGEST_MANIFEST:
        raise NotProven(f"{name} is too large.")
    return raw


def _check_signature(note: str, digest: bytes, vkeys: Sequence[str]) -> None:
    try:
        found = parse_note(note)
        good = found.text == manifest_text(PURPOSE, digest) and check_note(found, vkeys)
    except NoteError as error:
        raise NotProven(f"manifest.sig: {error}.") from error
    if not good:
        raise NotProven("manifest.sig is no signature of this ledger over manifest.json.")


class _Hashed(io.RawIOBase):
    """Reads on, counted and hashed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size, self.digest = 0, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """As a file does."""
        content = self._stream.read(size)
        self.size += len(content)
        self.digest.update(content)
        return content


def _read_file(store: Store, listed: dict[str, Any], proven: Proven, beat: Callable[[], None]) -> None:
    name, before = str(listed["name"]), proven.records
    with store.open(name) as stream:
        hashed = _Hashed(stream)
        try:
            if name.endswith(".jsonl.gz"):
                with gzip.GzipFile(fileobj=hashed) as lines:
                    while some := list(islice(lines, _LINES_AT_ONCE)):
                        _check_lines(name, some, proven)
                        beat()
            while hashed.read(1024 * 1024):
                pass
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise NotProven(f"{name} cannot be read: {error}.") from error
    if (hashed.size, hashed.digest.hexdigest()) != (listed["bytes"], listed["sha256"]):
        raise NotProven(f"{name} is not what the manifest says: it was changed, or cut off.")
    if proven.records - before != listed["records"]:
        raise NotProven(f"{name} has {proven.records - before} records, not {listed['records']}.")


def _check_lines(name: str, lines: list[bytes], proven: Proven) -> None:
    found = [orjson.loads(line) for line in lines]
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq, leaf FROM audit_leaf WHERE seq = ANY (%s)", [[each["seq"] for each in found]])
        sealed = {seq: bytes(leaf) for seq, leaf in cursor.fetchall()}
    for each in found:
        leaf = sealed.get(each["seq"])
        if leaf is None or leaf not in leaves_of(fields_of(each["record"])):
            raise NotProven(f"{name}: record {each['record']['rid']} is not what the ledger has sealed.")
        proven.add(each["seq"], each["record"]["at"])


def check(archive: Archive) -> Proven:
    """Read a finished export back again. Raises NotProven or StoreError."""
    return read_back(store_at(archive.place), archive.manifest, keys())


# --- Telling ----------------------------------------------------------------------------------------------------------


def _end(archive: Archive, state: str, door: str, *, code: str, error: str = "") -> None:
    with transaction.atomic():
        archive.state, archive.error, archive.finished_at = state, error, timezone.now()
        archive.save(update_fields=["state", "error", "finished_at"])
        _record(archive, code=code, door=door)


def _record(archive: Archive, *, code: str, door: str, request: Any = None, actor: Any = None) -> None:
    detail = {
        "label": str(archive),
        "month": f"{archive.month:%Y-%m}",
        "place": archive.place,
        "records": archive.total,
        **({"manifest": archive.manifest, "files": archive.files} if archive.manifest else {}),
        **({"message": archive.error} if archive.error else {}),
    }
    record_event(
        Record.Kind.SYSTEM,
        code,
        door=door,
        request=request,
        actor=actor,
        about=archive,
        detail=detail,
    )
