"""Whose data a record keeps, and how subjects that are values of arguments are found without storing the values."""

from __future__ import annotations

import base64
import os

from audit.models import SubjectHashKey


def subject_key() -> bytes:
    """The key under which values become subjects; made when it is asked for the first time."""
    made = base64.b64encode(os.urandom(32)).decode()
    row, _ = SubjectHashKey.objects.get_or_create(pk=1, defaults={"key": made})
    return base64.b64decode(row.key)
