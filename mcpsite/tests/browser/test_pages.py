"""Every page: it loads without a complaint, and axe finds no serious fault, in light and dark, wide and narrow."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from django.contrib.admin import site as admin_site
from django.urls import reverse
from playwright.sync_api import Browser

from mcpsite.tests.browser.chromium import NARROW, Visitor
from mcpsite.tests.conftest import Site

LISTS = [
    reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist") for model in admin_site._registry
]
FORMS = [
    "/admin/tools/datasource/add/",
    "/admin/tools/datasource/add/?kind=mcp",
    "/admin/tools/datasource/add/?kind=sql",
    "/admin/tools/toolset/add/",
    "/admin/access/user/add/",
    "/admin/access/serviceaccount/add/",
    "/admin/access/role/add/",
    "/admin/access/apitoken/add/",
    "/admin/agents/agent/add/",
    "/admin/audit/export/add/?tool=find_customer&last=24h",
    "/admin/audit/evidencepack/add/",
    "/admin/password_change/",
]
PAGES = ["/", "/admin/", *LISTS, *FORMS]
NARROW_PAGES = [
    "/admin/",
    "/admin/tools/tool/",
    "/admin/access/role/add/",
    "/admin/audit/record/",
    "/admin/audit/head/",
    "/admin/audit/evidencepack/add/",
]
LARGEST_MB = 150


def test_the_login_page_looks_right(browser: Browser, demo_site: Site) -> None:
    visitor = Visitor(browser, demo_site)
    visitor.open("/admin/login/")
    visitor.looks_right()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_looks_right(admin: Visitor, path: str) -> None:
    admin.complaints.clear()
    admin.open(path)
    admin.looks_right()


def test_the_pages_of_the_rest_api_load_without_a_complaint(admin: Visitor) -> None:
    """What Swagger UI itself does to accessibility is not ours to mend."""
    admin.complaints.clear()
    admin.open("/api/docs/")
    assert not admin.complaints


@pytest.fixture(scope="module")
def phone(browser: Browser, demo_site: Site, admin: Visitor) -> Visitor:
    visitor = Visitor(browser, demo_site, NARROW)
    visitor.share_session(admin)
    return visitor


@pytest.mark.parametrize("path", NARROW_PAGES)
def test_a_page_looks_right_on_a_phone(phone: Visitor, path: str) -> None:
    phone.complaints.clear()
    phone.open(path)
    phone.looks_right()


def test_a_record_on_a_phone_is_a_card_of_two_lines(phone: Visitor) -> None:
    phone.open("/admin/audit/record/?kind__exact=call")
    heights = [row.bounding_box() for row in phone.page.locator("#result_list .data-row").all()]
    assert heights
    assert max(box["height"] for box in heights if box) < 80


def test_a_web_worker_stays_small_when_the_admin_is_used(admin: Visitor) -> None:
    for path in PAGES * 2:  # after all that was opened before
        assert admin.context.request.get(path).ok
    workers = {pid: line for pid, line in admin.site.up.processes().items() if "mcpsite.web" in line}
    assert len(workers) == 1
    [pid] = workers
    # What the pages took goes back to the system a few seconds later.
    deadline = time.monotonic() + 15
    while resident_mb(pid) >= LARGEST_MB and time.monotonic() < deadline:
        time.sleep(0.5)
    assert resident_mb(pid) < LARGEST_MB


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024
