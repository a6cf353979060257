"""A column for what others say: upstreams, drivers, receivers. They may repeat what they were sent."""

from __future__ import annotations

from typing import Any

from django.db import models

from audit.masking import known


class MaskedTextField(models.TextField):  # type: ignore[type-arg]
    """A text in which known secrets are replaced whenever it is written; then it is cut to `longest` characters."""

    def __init__(self, *args: Any, longest: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._longest = longest

    def get_prep_value(self, value: Any) -> Any:
        """The text as it is stored."""
        text = super().get_prep_value(value)
        return known().refresh().text(text)[: self._longest] if text else text

    def deconstruct(self) -> Any:
        """As a TextField: the column is the same."""
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.TextField", args, options
