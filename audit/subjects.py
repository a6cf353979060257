"""Whose data a record keeps, and how subjects that are values of arguments are found without storing the values."""

from __future__ import annotations

import base64
import hmac
import os
from functools import lru_cache

from django.contrib.auth import get_user_model

from audit.datakeys import Subject
from audit.models import Record, SubjectHashKey

USER = "user"


class UnknownSubject(ValueError):
    """Nobody of that name; the message says where it was looked for."""

    code = "unknown_subject"


def subject_key() -> bytes:
    """The key under which values become subjects; made when it is asked for the first time."""
    made = base64.b64encode(os.urandom(32)).decode()
    row, _ = SubjectHashKey.objects.get_or_create(pk=1, defaults={"key": made})
    return base64.b64decode(row.key)


@lru_cache(maxsize=4096)
def subject_hash(key: bytes, kind: str, value: str) -> str:
    """What stands for a value in the table of keys: HMAC-SHA-256, which nobody can guess back without the key."""
    return hmac.digest(key, f"{kind}\0{value}".encode("utf-8", "replace"), "sha256").hex()


def subject_of(kind: str, value: str) -> Subject:
    """The subject: a user by name, also one that was deleted, or what policies call `kind` by its value.

    Raises UnknownSubject for a user of whom there is neither an account nor a record.
    """
    if kind != USER:
        return Subject(kind, subject_hash(subject_key(), kind, value))
    user = get_user_model()._default_manager.filter(username=value).first()
    if user is not None:
        return Subject(USER, str(user.pk))
    # Accounts go, records stay: they know the id under which the keys are.
    known = Record.objects.filter(actor=value).exclude(actor_id=None).order_by("-at", "-id")
    found = known.values_list("actor_id", flat=True).first()
    if found is None:
        raise UnknownSubject(f"There is no user {value!r}, and no record of one.")
    return Subject(USER, found)
