"""How much is taken from an upstream."""

from __future__ import annotations

from django.conf import settings

from tools.connectors.base import ConnectorError

MAX_RESULT_BYTES: int = settings.MAX_RESULT_BYTES


def too_large() -> ConnectorError:
    """What is said of an answer over the limit."""
    return ConnectorError("result_too_large", f"The upstream's answer is larger than {MAX_RESULT_BYTES} bytes.")
