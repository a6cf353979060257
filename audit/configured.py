"""Settings that change what is recorded, kept or trusted: a process that starts with others puts them on record.

Settings are set outside of the site, so nobody's change of one is seen; what a process was started with is.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction

from audit.changes import differences
from audit.ledger import record
from audit.models import Configured
from audit.outside.sinks.base import Sink
from audit.system import process_event
from keyring.keys import ring

# Those that every process is given; none is secret.
_TOLD = (
    "AGENT_RUN_DAYS",
    "ARGUMENT_READS_PER_HOUR",
    "CALL_TIMEOUT_SECONDS",
    "EXPORT_DAYS",
    "GAP_WAITING_HOURS",
    "LANGSMITH_TRACING",
    "LEDGER_ARCHIVE",
    "PUBLIC_URL",
    "RECORDED_ARGUMENTS",
    "RECORDED_RESULTS_KB",
    "TRUSTED_PROXIES",
)


def configuration() -> dict[str, Any]:
    """The settings that matter to an auditor; of keys the names."""
    return {
        **{name: getattr(settings, name) for name in _TOLD},
        "ENCRYPTION_KEYS": list(ring().key_ids),
        "LEDGER_ANCHORS": [_told(each) for each in settings.LEDGER_ANCHORS],
        "LEDGER_WITNESSES": [str(each) for each in settings.LEDGER_WITNESSES],
    }


def _told(sink: Sink) -> str:
    locked = f" ({mode}, {getattr(sink, 'days', '')} days)" if (mode := getattr(sink, "mode", "")) else ""
    return f"{sink.name}{locked}"


def note_configuration(program: str) -> bool:
    """Record what differs from what the last process was started with, before and after. Returns whether anything does.

    Blocking. Raises django.db.Error.
    """
    found = configuration()
    if Configured.objects.filter(values=found).exists():
        return False
    with transaction.atomic():
        Configured.objects.get_or_create(pk=1)
        known = Configured.objects.select_for_update().get(pk=1)
        changes = differences(known.values, found)
        if changes:
            record(process_event("configuration_changed", program, changes=changes))
            known.values = found
            known.save()
    return bool(changes)
