"""What the ledger says about exports: asked for, made, taken away, deleted."""

from __future__ import annotations

import uuid
from typing import Any

from audit.changes import record_event
from audit.export.models import Export
from audit.models import Record


def record_export(
    export: Export, code: str, *, door: str, request: Any = None, actor: Any = None, **said: Any
) -> uuid.UUID:
    """Record a turn of an export in the current transaction; `said` goes into the detail."""
    detail = {"label": str(export), "form": export.form, "scope": export.scope, "payloads": export.payloads, **said}
    return record_event(
        Record.Kind.SYSTEM,
        code,
        door=door,
        request=request,
        actor=actor,
        about=export,
        detail=detail,
        **({} if request is not None or actor is not None else {"on_behalf_of": export.asked_by}),
    )
