"""Where an export goes: a folder, or a zip archive that is written from beginning to end."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

# Of every file in an archive: so the same content makes the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_COMPRESSED = (".gz", ".png")
# What the directory at the end of an archive says of an entry.
_LISTED = (
    "filename", "header_offset", "CRC", "compress_size", "file_size", "flag_bits", "create_version", "extract_version",
)  # fmt: skip


class Target(Protocol):
    """Takes one file after the other."""

    @contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """A stream to write the file `name` to; it is complete when the block ends without an error."""
        yield  # type: ignore[misc]


class Stream(Protocol):
    """As much of a file as an archive needs."""

    def write(self, content: bytes | memoryview, /) -> int:
        """Take the bytes."""

    def flush(self) -> None:
        """Nothing is asked for."""


class Folder:
    """A directory of files that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """A new file. Raises FileExistsError: an export is written once."""
        place = self._path / name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())


class Archive:
    """A zip archive, written to a stream that need not be able to seek. Use it as a context.

    `entries` are those that the stream has already, where it can `tell` that.
    """

    def __init__(self, stream: Stream, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        anything: Any = stream
        self._zip = zipfile.ZipFile(anything, "w", zipfile.ZIP_DEFLATED)
        self._zip.filelist.extend(map(_listed, entries))

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self._zip.close()
        # Else it would write its directory when it is collected, and a torn archive would look like a whole one.
        self._zip.fp = None

    @contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        """An entry of the archive."""
        with self._zip.open(_entry(name), "w", force_zip64=True) as stream:
            yield stream

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Those that are complete, for an archive that goes on behind them."""
        return [{name: getattr(entry, name) for name in _LISTED} for entry in self._zip.filelist]


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o600 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(_COMPRESSED) else zipfile.ZIP_DEFLATED
    return entry


def _listed(said: Mapping[str, Any]) -> zipfile.ZipInfo:
    entry = _entry(said["filename"])
    for name in _LISTED:
        setattr(entry, name, said[name])
    return entry
