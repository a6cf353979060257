"""The page of the REST API: it can be tried with the session and with a pasted token, and read; all from this site."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from mcpsite.tests.browser.chromium import NARROW, Visitor
from mcpsite.tests.conftest import Site


@pytest.fixture
def visitor(browser: Browser, demo_site: Site, admin: Visitor) -> Visitor:
    visitor = Visitor(browser, demo_site)
    visitor.share_session(admin)
    visitor.page.on("request", lambda request: visitor.complaints.append(request.url) if _leaves(request.url) else None)
    return visitor


def _leaves(url: str) -> bool:
    return not url.startswith(("http://localhost:", "data:", "blob:"))


def execute(visitor: Visitor, tag: str, operation: str) -> str:
    """Try the operation, and return the status of its answer."""
    block = visitor.page.locator(f"#operations-{tag}-{operation}")
    if not block.is_visible():
        visitor.page.locator(f"#operations-tag-{tag}").click()
    if not block.locator(".try-out__btn").is_visible():
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
    block.locator(".execute").click()
    status: str = block.locator(".live-responses-table tr.response td.response-col_status").first.inner_text()
    return status.split()[0]


def test_it_can_be_tried_with_the_session(visitor: Visitor) -> None:
    visitor.open("/api/docs/")
    assert execute(visitor, "users", "users_list") == "200"
    assert not visitor.complaints


def test_it_can_be_tried_with_a_pasted_token(visitor: Visitor, demo_site: Site) -> None:
    visitor.open("/api/docs/")
    visitor.page.get_by_role("button", name="Authorize").click()
    visitor.page.get_by_label("auth-bearer-value").fill(demo_site.tokens["auditor"])
    visitor.page.locator(".auth-btn-wrapper .authorize").first.click()
    visitor.page.locator(".btn-done").first.click()
    visitor.context.clear_cookies()
    assert execute(visitor, "audit", "audit_records_list") == "200"
    assert execute(visitor, "roles", "roles_create") == "403"


@pytest.mark.parametrize("narrow", [False, True])
def test_it_can_be_read(visitor: Visitor, narrow: bool) -> None:
    if narrow:
        visitor.page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
    visitor.open("/api/docs/?read")
    expect(visitor.page.get_by_role("heading", name="Call a tool")).to_be_attached()
    assert not visitor.complaints
    assert not visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_the_browsable_pages_work_under_the_policy(visitor: Visitor) -> None:
    for path in ("/api/v1/", "/api/v1/users/", "/api/v1/users/?ordering=-date_joined&limit=1", "/api/v1/roles/1/"):
        visitor.open(path)
    assert not visitor.complaints
