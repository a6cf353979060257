"""What is outside, in the admin: where heads are anchored, and what is held against the ledger."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString

from audit.doors import ReadOnlyAdmin
from audit.outside.contradictions import settled
from audit.outside.models import Anchor, Contradiction
from audit.theme import badge, code_block, display, mono, with_code

_MEANINGS = {
    Contradiction.Code.BEHIND: "The ledger has gone back to an older state: records that were sealed are missing now.",
    Contradiction.Code.FORKED: "The ledger has signed two heads in the same place: it was changed, or an older state of"
    " it was restored and went on.",
    Contradiction.Code.INCONSISTENT: "Records that were sealed are not what they were: the ledger was changed.",
}
_SETTLED_BY = (
    " Keep the signed head below, and look with `manage.py verify_ledger` for what differs. If a backup was restored on"
    " purpose, `manage.py ledger accept-restore` signs a break, which settles it. Otherwise treat it as tampering."
)


@admin.register(Contradiction)
class ContradictionAdmin(ReadOnlyAdmin):
    """Heads that the ledger signed and does not stand by."""

    list_display = ("at", "source", "what", "head", "state")
    list_display_links = ("at",)
    list_per_page = 50
    show_full_result_count = False
    fields = ("state", "meaning", "source", "head", "sealed_at", "at", "signed")
    empty_title = "Nothing is held against the ledger"
    empty_text = "Witnesses and anchors have no head that the ledger does not have."

    @display(description="What was found")
    def what(self, found: Contradiction) -> str:
        """In words."""
        return found.get_code_display()

    @display(description="What to do")
    def meaning(self, found: Contradiction) -> SafeString:
        """What the finding says of the ledger, and what settles it."""
        if settled(found.sealed_at):
            return with_code(
                "Nothing: a restore was accepted afterwards, with a signed break and a record that says why."
            )
        return with_code(_MEANINGS[Contradiction.Code(found.code)] + _SETTLED_BY)

    @display(description="State")
    def state(self, found: Contradiction) -> SafeString:
        """Whether a later break explains it."""
        return badge("Settled by a break", "grey") if settled(found.sealed_at) else badge("Open", "red")

    @display(description="Signed head")
    def signed(self, found: Contradiction) -> SafeString:
        """The proof."""
        return code_block(found.note)


@admin.register(Anchor)
class AnchorAdmin(ReadOnlyAdmin):
    """Heads in sinks outside of the database."""

    list_display = ("at", "head", "sink", "short_receipt")
    list_display_links = ("at",)
    list_per_page = 50
    show_full_result_count = False
    fields = ("at", "head", "sink", "whole_receipt")
    empty_title = "Nothing is anchored yet"
    empty_text = "Name a directory, a bucket or a webhook in LEDGER_ANCHORS: each minute it gets the newest head."

    @display(description="Receipt")
    def short_receipt(self, anchor: Anchor) -> SafeString:
        """What the sink gave."""
        found: dict[str, Any] = json.loads(anchor.receipt)
        return mono(" · ".join(f"{name} {value}" for name, value in found.items() if name in _SHORT and value))

    @display(description="Receipt")
    def whole_receipt(self, anchor: Anchor) -> SafeString:
        """All of it."""
        return code_block(json.dumps(json.loads(anchor.receipt), indent=2))


_SHORT = ("offset", "version", "status", "sequence", "locked_until")
