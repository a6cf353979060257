"""The address of a caller is the one that the outermost trusted proxy saw, and no other."""

from __future__ import annotations

import pytest
from django.test import RequestFactory

from audit.caller import address_of, caller_of


@pytest.mark.parametrize(
    ("proxies", "forwarded", "found"),
    [
        (0, "6.6.6.6", "127.0.0.1"),
        (1, "6.6.6.6, 203.0.113.7", "203.0.113.7"),
        (2, "6.6.6.6, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
        (2, "203.0.113.7", "127.0.0.1"),
        (1, "<script>", None),
    ],
)
def test_only_what_trusted_proxies_wrote_is_believed(settings, proxies, forwarded, found):
    settings.TRUSTED_PROXIES = proxies
    assert address_of(RequestFactory().get("/", headers={"X-Forwarded-For": forwarded})) == found


def test_nobody_is_known_without_a_request():
    assert caller_of().actor is None
