"""Ready-made selections of records: what auditors look at first, under names."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True)
class View:
    """A selection: its name, why one looks at it, the parameters of the list."""

    name: str
    why: str
    query: tuple[tuple[str, str], ...]
    icon: str

    @property
    def address(self) -> str:
        """The query string of the list."""
        return urlencode(self.query)


_WEEK = ("last", "7d")
VIEWS = (
    View("Denials", "Calls and logins that were refused", (("decision", "deny"), _WEEK), "block"),
    View("Changes of privilege", "Users, roles, grants, tokens, egress", (("topic", "privileges"), _WEEK), "key"),
    View("Break-glass reads", "Who read, sought or erased payloads", (("topic", "payloads"), _WEEK), "visibility"),
    View("Unknown outcomes", "Nobody knows whether they took effect", (("topic", "unknown"), _WEEK), "help"),
    View("Administrators' calls", "By who may change the rules", (("topic", "administrators"), _WEEK), "shield_person"),
    View("Exports", "What was taken out of the ledger", (("topic", "exports"), _WEEK), "download"),
    View("Logins and tokens", "Who came in, and who could not", (("kind", "auth"), _WEEK), "login"),
    View("The ledger itself", "Keys, anchors, retention, streams", (("topic", "ledger"), _WEEK), "database"),
)
