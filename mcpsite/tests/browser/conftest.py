from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from mcpsite.tests.browser.chromium import Visitor, chromium
from mcpsite.tests.conftest import Site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def admin(browser: Browser, demo_site: Site) -> Visitor:
    """The administrator at a wide screen, logged in."""
    visitor = Visitor(browser, demo_site)
    visitor.log_in()
    return visitor
