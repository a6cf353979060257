"""What every sink is given, gives back, and fails with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from audit.verify import Head

Receipt = Mapping[str, Any]


class SinkFailed(Exception):
    """The sink did not take the head, or cannot be read; the text is a sentence for people, without secrets."""

    code = "anchor_failed"


@dataclass(frozen=True, slots=True)
class Anchored:
    """A head on its way to a sink: what it says, and the signed note."""

    head: Head
    note: str

    @property
    def key(self) -> str:
        """A name that no other head has; later heads come later in the order of the alphabet, also after a break."""
        digest = sha256(self.head.text.encode()).hexdigest()[:16]
        return f"{self.head.sealed_at:%Y%m%dT%H%M%S.%fZ}-{self.head.number}-{digest}"


class Sink(Protocol):
    """A place that keeps heads, and at best lets nobody change them."""

    @property
    def name(self) -> str:
        """Its address, without options."""

    def put(self, anchored: Anchored, sequence: int) -> Receipt:
        """Keep the head, on disk when this returns, and say where. A second time it changes nothing. Raises SinkFailed.

        `sequence` counts the heads that the sink has taken, from 1.
        """

    def newer(self, origin: str, than: Anchored | None) -> str | None:
        """The note of the newest head that the sink has of this log, if it is another one than `than`; None if not, or
        if the sink cannot be asked. Raises SinkFailed.
        """
