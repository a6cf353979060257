"""The archive in the database: written piece by piece, each its own transaction, and read by ranges."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.db.models import QuerySet

from audit.export.models import Export, Part

PART_BYTES = 1024 * 1024


class TooLarge(Exception):
    """The archive has grown beyond what one may have."""


class Cancelled(Exception):
    """Somebody wants it no more, or has deleted it, or another worker makes it."""


def ours(export: Export) -> QuerySet[Export]:
    """The row, unless it is not wanted any more, or another worker has taken it up."""
    return Export.objects.filter(pk=export.pk, cancel_asked=False, attempts=export.attempts)


class Parts:
    """A stream to write an archive to. Raises TooLarge beyond `most` bytes, Cancelled, and what the database raises."""

    def __init__(self, export: Export, most: int) -> None:
        self._export, self._most = export, most
        self._waiting = bytearray()
        self._number = 0
        self._digest = hashlib.sha256()
        self.size = 0

    def go_on(self, size: int) -> None:
        """Go on behind the first `size` bytes, which an earlier worker has kept."""
        while self.size < size:
            data = _part(self._export, self._number)[: size - self.size]
            self._digest.update(data)
            self.size += len(data)
            if len(data) == PART_BYTES:
                self._number += 1
            else:
                self._waiting += data
        # What was written behind them is written anew.
        Part.objects.filter(export=self._export, number__gt=self._number).delete()

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.size

    def write(self, content: bytes | memoryview, /) -> int:
        """As a file does."""
        self._waiting += content
        self.size += len(content)
        self._digest.update(content)
        if self.size > self._most:
            raise TooLarge(
                f"The archive is larger than {self._most // 1024**2:,} MB: choose a shorter time or more filters,"
                " or have EXPORT_MAX_MB raised."
            )
        while len(self._waiting) >= PART_BYTES:
            self._keep(PART_BYTES)
            del self._waiting[:PART_BYTES]
            self._number += 1
        return len(content)

    def flush(self) -> None:
        """As a file does. What is less than a part waits."""

    def keep(self) -> None:
        """Keep what is less than a part too; it grows when there is more."""
        if self._waiting:
            self._keep(len(self._waiting))

    def close(self) -> str:
        """Keep the rest; the SHA-256 of the whole as hexadecimal digits."""
        self.keep()
        return self._digest.hexdigest()

    def _keep(self, length: int) -> None:
        part = Part(export=self._export, number=self._number, data=bytes(self._waiting[:length]))
        with transaction.atomic():
            # A worker that was only thought dead must not write into what another one makes.
            if ours(self._export).select_for_update().first() is None:
                raise Cancelled
            Part.objects.bulk_create(
                [part], update_conflicts=True, unique_fields=("export", "number"), update_fields=("data",)
            )


def _part(export: Export, number: int) -> bytes:
    """The connection goes back to the pool: a slow reader must not hold one."""
    try:
        return bytes(Part.objects.values_list("data", flat=True).get(export=export, number=number))
    finally:
        if not connection.in_atomic_block:
            connection.close()


async def read(export: Export, first: int, last: int) -> AsyncIterator[bytes]:
    """The bytes from `first` to `last`, both included, a part at a time."""
    for number in range(first // PART_BYTES, last // PART_BYTES + 1):
        start = number * PART_BYTES
        data = await sync_to_async(_part)(export, number)
        yield data[max(first - start, 0) : last - start + 1]
