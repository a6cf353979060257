"""The numbers of all processes of one machine, put together in a directory.

Each process writes its own file anew every second and holds a lock for as long as it lives. Whoever is asked adds up
all files. What a process counted stays when it has ended, however it ended. A process that starts folds the files of
those that have ended into one, so that they do not pile up.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

# Family → labels → numbers: one, or the buckets of a histogram and their sum.
Samples = dict[str, dict[tuple[str, ...], list[float]]]

_KEPT = "kept.json"


@dataclass(slots=True)
class Reading:
    """What processes count (`totals`, which only grow), and how they are at this moment (`states`)."""

    totals: Samples = field(default_factory=dict)
    states: Samples = field(default_factory=dict)


class Tally:
    """One process's part of the sum. Every method blocks for file work: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._id = uuid.uuid4().hex
        self._life = -1
        self._writing = threading.Lock()

    def open(self) -> None:
        """Join, and fold what processes left that have ended. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._guard(fcntl.LOCK_EX):
            self._life = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._life, fcntl.LOCK_EX)
            self._fold()

    def close(self) -> None:
        """Leave; what was published stays in the sum."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1

    def publish(self, read: Callable[[], Reading]) -> None:
        """Replace this process's numbers by what `read` gives now. Raises OSError."""
        with self._writing:  # an older reading must not follow a newer one
            reading = read()
            self._write(self._path("json"), {"totals": _packed(reading.totals), "states": _packed(reading.states)})

    def gather(self) -> tuple[Samples, list[Samples]]:
        """The totals of all processes together, and the states of each that lives. Raises OSError."""
        totals: Samples = {}
        states: list[Samples] = []
        if not self._folder.is_dir():
            return totals, states
        with self._guard(fcntl.LOCK_SH):
            kept = self._read(self._folder / _KEPT)
            _add(totals, kept.get("totals", {}))
            for identifier in self._published(kept):
                content = self._read(self._path("json", identifier))
                _add(totals, content.get("totals", {}))
                if self._lives(identifier):
                    states.append(_unpacked(content.get("states", {})))
        return totals, states

    def _fold(self) -> None:
        """Take the totals of processes that have ended into the kept ones. What `folded` names is in there already."""
        kept = self._read(self._folder / _KEPT)
        ended = [identifier for identifier in self._published(kept) if not self._lives(identifier)]
        if not ended:
            return
        totals: Samples = {}
        _add(totals, kept.get("totals", {}))
        for identifier in ended:
            _add(totals, self._read(self._path("json", identifier)).get("totals", {}))
        self._write(self._folder / _KEPT, {"totals": _packed(totals), "folded": ended})
        for identifier in ended:
            for kind in ("json", "new", "lock"):
                self._path(kind, identifier).unlink(missing_ok=True)

    def _published(self, kept: dict[str, object]) -> list[str]:
        folded = kept.get("folded")
        gone = set(folded) if isinstance(folded, list) else set()
        return sorted({path.stem for path in self._folder.glob("*.json")} - gone - {Path(_KEPT).stem})

    def _lives(self, identifier: str) -> bool:
        """Whether the process holds its lock; the kernel lets go of it when the process ends."""
        try:
            descriptor = os.open(self._path("lock", identifier), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def _guard(self, kind: int) -> Iterator[None]:
        """Keep files from being folded while they are read."""
        descriptor = os.open(self._folder / "guard", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _path(self, kind: str, identifier: str | None = None) -> Path:
        return self._folder / f"{identifier or self._id}.{kind}"

    def _write(self, path: Path, content: dict[str, object]) -> None:
        new = self._path("new")
        new.write_bytes(orjson.dumps(content))
        new.replace(path)

    @staticmethod
    def _read(path: Path) -> dict[str, object]:
        try:
            content = orjson.loads(path.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return content if isinstance(content, dict) else {}


def _packed(samples: Samples) -> dict[str, list[object]]:
    return {family: [[labels, numbers] for labels, numbers in values.items()] for family, values in samples.items()}


def _unpacked(content: object) -> Samples:
    assert isinstance(content, dict)
    return {family: {tuple(labels): numbers for labels, numbers in rows} for family, rows in content.items()}


def _add(totals: Samples, content: object) -> None:
    for family, values in _unpacked(content).items():
        sums = totals.setdefault(family, {})
        for labels, numbers in values.items():
            known = sums.get(labels)
            # A histogram of a version with other buckets cannot be added to.
            sums[labels] = (
                [a + b for a, b in zip(known, numbers, strict=True)]
                if known is not None and len(known) == len(numbers)
                else numbers
            )
