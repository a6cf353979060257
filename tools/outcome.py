"""What a synchronisation made of what a data source offers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """What is offered, by what became of it: tools by name, others as `prompt NAME`. `refused` says why for each."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_news(self) -> bool:
        """Whether anything is not as it was."""
        return bool(self.created or self.changed or self.missing)

    def told(self) -> dict[str, Any]:
        """As it is kept and recorded: the names of what became different, the number of what did not."""
        named = {"created": self.created, "changed": self.changed, "missing": self.missing, "refused": self.refused}
        return {**{name: value for name, value in named.items() if value}, "unchanged": len(self.unchanged)}

    def sentence(self) -> str:
        """For people."""
        counts = {
            "new": self.created,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "no longer offered": self.missing,
        }
        said = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
        refused = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        told = f"Synchronised: {said or 'the source offers nothing'}."
        return told + (f" Refused: {refused}" if refused else "")


def printable(text: str, longest: int = 80) -> str:
    """The text as it can be shown and stored, whatever an upstream put into it."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text[:longest])
