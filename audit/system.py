"""What the installation does by itself, as records: its processes start and stop, and what they find out."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from django.conf import settings

from audit.entry import Entry


def system_event(code: str, detail: dict[str, Any], **columns: Any) -> Entry:
    """A record of the kind `system` in nobody's name."""
    text = json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
    return Entry(kind="system", code=code, detail=text, **columns)


def process_event(code: str, program: str, **detail: Any) -> Entry:
    """A process started or stopped: which one, of which version, where."""
    where = {"program": program, "version": settings.VERSION, "host": socket.gethostname(), "pid": os.getpid()}
    return system_event(code, {**where, **detail})
