"""Every test here has heads of its own."""

from __future__ import annotations

import pytest

from audit.outside.tests.heads import empty


@pytest.fixture(autouse=True)
def heads_of_its_own(request: pytest.FixtureRequest) -> None:
    """Where the test uses the database."""
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        request.getfixturevalue("db")
        empty()
