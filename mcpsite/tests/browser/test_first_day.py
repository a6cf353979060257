"""An administrator's first day: from the first login to the record of a call that a program made."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Browser, expect

from mcpsite.tests.browser.chromium import Visitor
from mcpsite.tests.clients.visits import PYTHON_2
from mcpsite.tests.conftest import Site

TOOL = "branch_get_current_time"


def test_from_the_first_login_to_the_record_of_a_call(browser: Browser, demo_site: Site) -> None:
    admin = Visitor(browser, demo_site)
    logs_in(admin)
    adds_a_data_source(admin)
    checks_and_synchronises_it(admin)
    tries_a_tool_that_is_not_granted(admin)
    grants_it_to_a_new_role(admin)
    tries_it_as_the_role(admin)
    gives_the_role_to_a_program(admin)
    token = issues_a_token(admin)
    record = calls_with(demo_site, token)
    finds_and_reads(admin, record, token)


def logs_in(admin: Visitor) -> None:
    admin.open("/admin/")
    admin.looks_right()
    admin.log_in()
    expect(admin.page).to_have_title(re.compile("mcpsite"))
    admin.looks_right()


def adds_a_data_source(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/tools/datasource/add/")
    page.get_by_role("link", name="MCP server").first.click()
    page.get_by_label("Name").fill("branch-office")
    page.get_by_label("Prefix").fill("branch_")
    page.get_by_label("URL").fill(admin.site.upstream_url)
    page.get_by_label("Bearer token").fill(admin.site.upstream_token)
    admin.looks_right()
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text("was added successfully")).to_be_visible()
    assert admin.site.upstream_token not in page.content(), "a secret is not shown again"
    admin.looks_right()


def checks_and_synchronises_it(admin: Visitor) -> None:
    page = admin.page
    page.get_by_role("link", name="Test connection").click()
    page.get_by_role("button", name="Test", exact=True).click()
    expect(page.get_by_text("office answers with revision 2026-07-28").first).to_be_visible()
    page.get_by_role("link", name="Synchronise").click()
    page.get_by_role("button", name="Synchronise", exact=True).click()
    expect(page.get_by_role("link", name=TOOL)).to_be_visible()
    admin.looks_right()


def tries_a_tool_that_is_not_granted(admin: Visitor) -> None:
    page = admin.page
    admin.open(f"/admin/tools/tool/?q={TOOL}")
    page.get_by_role("link", name=TOOL).click()
    admin.looks_right()
    page.get_by_role("link", name="Try").click()
    page.get_by_label("timezone").fill("Europe/Berlin")
    admin.looks_right()
    page.get_by_role("button", name="Call").last.click()
    expect(page.get_by_role("heading", name="Refused")).to_be_visible()
    admin.looks_right()


def grants_it_to_a_new_role(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/access/role/add/")
    page.get_by_label("Name").fill("clockwatcher")
    page.get_by_role("link", name="Add another Grant").click()
    admin.choose("grants-0-tool", TOOL)
    preview = page.get_by_role("region", name="What can be used")
    expect(preview.get_by_role("link", name=TOOL)).to_be_visible()
    admin.looks_right()
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text("was added successfully")).to_be_visible()
    expect(preview.get_by_role("link", name=TOOL)).to_be_visible()
    admin.looks_right()


def tries_it_as_the_role(admin: Visitor) -> None:
    page = admin.page
    admin.open(f"/admin/tools/tool/?q={TOOL}")
    page.get_by_role("link", name=TOOL).click()
    page.get_by_role("link", name="Try").click()
    page.get_by_role("combobox", name="With whose rights").select_option(label="The role clockwatcher")
    page.get_by_label("timezone").fill("Europe/Berlin")
    page.get_by_role("button", name="Call").last.click()
    expect(page.get_by_role("heading", name="Called")).to_be_visible()
    expect(page.get_by_role("region", name="Result")).to_contain_text("Europe/Berlin")
    admin.looks_right()


def gives_the_role_to_a_program(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/access/serviceaccount/add/")
    page.get_by_label("Username").fill("wall-clock")
    page.locator("[name=groups_old]").select_option(label="clockwatcher")
    page.get_by_role("button", name="Choose selected roles").click()
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.get_by_text(TOOL, exact=True).first).to_be_visible()
    admin.looks_right()


def issues_a_token(admin: Visitor) -> str:
    page = admin.page
    admin.open("/admin/access/apitoken/add/")
    admin.choose("user", "wall-clock")
    page.get_by_label("Name").fill("in the hall")
    page.get_by_role("button", name="Save").click()
    secret = page.locator("#token-secret").inner_text()
    assert re.fullmatch(r"mcps_[\w-]{40,}", secret)
    admin.looks_right()
    return secret


def calls_with(site: Site, token: str) -> dict[str, Any]:
    """The record of a call by the official client, which is given nothing but the token."""
    met = PYTHON_2.visit(site, token, [{"name": TOOL, "arguments": {"timezone": "Asia/Tokyo"}}])
    assert [tool["name"] for tool in met["tools"]] == [TOOL]
    assert met["calls"][0]["structuredContent"]["timezone"] == "Asia/Tokyo"
    return site.record(met["calls"][0]["_meta"]["mcpsite/record"])


def finds_and_reads(admin: Visitor, record: dict[str, Any], token: str) -> None:
    page = admin.page
    admin.open("/admin/audit/record/?kind__exact=call")
    admin.looks_right()
    admin.open(f"/admin/audit/record/?q={record['rid']}")
    page.locator("#result_list a").first.click()
    told = page.locator("#content-main").inner_text()
    for expected in ("wall-clock", TOOL, "branch-office", token[:12]):
        assert expected in told, f"{expected} is missing: {told}"
    admin.looks_right()
