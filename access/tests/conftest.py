"""Nobody's failed logins are remembered from the test before."""

from __future__ import annotations

import pytest
from django.core.cache import cache

from access import attempts


@pytest.fixture(autouse=True)
def no_attempts():
    """Each test begins with an empty cache."""
    cache.clear()
    attempts._local.cache_clear()
