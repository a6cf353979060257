"""Evidence packs in the admin."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from audit.export.admin import ArchiveAdmin
from audit.export.asking import ask_for_export
from audit.export.models import EvidencePack, Export
from audit.packs.scope import ALL, KNOWN, MOST_SAMPLES, NAMES, SAMPLES, USUAL_SAMPLES, PackScope, read, scope_of

_WORDS = {"as_of": "Access as of", "sources": "Data sources", "samples": "Samples of each kind"}
_RECORDS = {SAMPLES: "of the samples", ALL: "all in scope"}


@admin.register(EvidencePack)
class EvidencePackAdmin(ArchiveAdmin):
    """What an auditor takes home: a period of the ledger with all that is asked around it."""

    list_display = ("asked_at", "period", "asked_by", "shown_state", "shown_records", "shown_size", "expires_at")
    form_template = "admin/export/pack_form.html"
    empty_icon = "inventory_2"
    empty_title = "No evidence packs yet"
    empty_text = "A pack holds the population, samples, access and changes of a period, signed, to be read offline."

    def asked(self, request: HttpRequest) -> dict[str, Any]:
        """What was sent, else the last month."""
        first = timezone.localtime().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        usual = {
            "since": _field((first - timedelta(days=1)).replace(day=1)),
            "until": _field(first),
            "samples": USUAL_SAMPLES,
            "records": SAMPLES,
        }
        given = request.POST if request.method == "POST" else request.GET
        return {
            "given": {**usual, **{name: given[name] for name in KNOWN if given.get(name)}},
            "most_samples": MOST_SAMPLES,
            "this_month": {"since": _field(first), "until": _field(datetime.combine(timezone.now(), time.max))},
        }

    def ask(self, request: HttpRequest) -> Export:
        """Queue it. Raises ExportRefused and BadScope."""
        given = {name: request.POST[name] for name in KNOWN if request.POST.get(name)}
        return ask_for_export(Export.Form.PACK, read(given), user=request.user, door="admin", request=request)

    def told(self, export: Export) -> list[tuple[str, str]]:
        """The scope, as names and values."""
        scope = scope_of(export.scope)
        names = [(_words(name), ", ".join(getattr(scope, name))) for name in NAMES if getattr(scope, name)]
        return [
            ("Period", period_of(scope)),
            *names,
            (_words("as_of"), f"{scope.as_of:%Y-%m-%d %H:%M}"),
            (_words("samples"), str(scope.samples)),
            (_words("seed"), scope.seed),
            (_words("records"), _RECORDS[scope.records]),
        ]

    @admin.display(description="Period")
    def period(self, export: Export) -> str:
        """From and until."""
        return period_of(scope_of(export.scope))


def period_of(scope: PackScope) -> str:
    """From and until, to the minute."""
    return f"{scope.since:%Y-%m-%d %H:%M} to {scope.until:%Y-%m-%d %H:%M}"


def _words(name: str) -> str:
    return _WORDS.get(name, name.capitalize())


def _field(moment: datetime) -> str:
    """As the browser's field wants it."""
    return f"{moment:%Y-%m-%dT%H:%M}"
