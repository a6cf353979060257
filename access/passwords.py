"""Which passwords are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.auth import password_validation

if TYPE_CHECKING:
    from access.models import User


class CommonPasswordValidator(password_validation.CommonPasswordValidator):
    """Django's, that reads its twenty thousand words when a password is set, and does not keep them."""

    def __init__(self) -> None:
        """Nothing to read yet."""

    def validate(self, password: str, user: User | None = None) -> None:
        """Raise ValidationError for a password that many have."""
        password_validation.CommonPasswordValidator().validate(password, user)
