"""What can be done with lists and the first page: saved filters, actions on many objects, the palette, the chart."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from mcpsite.tests.browser.chromium import Visitor

TOOLS = "/admin/tools/tool/"


def test_a_list_is_saved_opened_and_deleted(admin: Visitor) -> None:
    page = admin.page
    admin.open(f"{TOOLS}?effect__exact=write")
    page.get_by_role("button", name="Saved filters").click()
    page.get_by_role("button", name="Save this list").click()
    page.get_by_label("Name", exact=True).fill("Tools that write")
    page.get_by_label("For everybody").check()
    admin.looks_right()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("The list is saved as Tools that write.")).to_be_visible()
    admin.open(TOOLS)
    page.get_by_role("button", name="Saved filters").click()
    page.get_by_role("link", name="Tools that write").click()
    expect(page).to_have_url(re.compile(r"effect__exact=write$"))
    expect(page.get_by_role("button", name="Tools that write")).to_be_visible()
    page.get_by_role("button", name="Tools that write").click()
    page.get_by_role("link", name="Rename, share or delete").click()
    page.get_by_role("link", name="Tools that write").click()
    admin.looks_right()
    page.locator("a[href*='/savedfilter/'][href$='/delete/']").click()
    page.get_by_role("button", name=re.compile("^Yes")).click()
    expect(page.get_by_text("was deleted successfully")).to_be_visible()


def test_many_tools_are_switched_off_and_on_again(admin: Visitor) -> None:
    page = admin.page
    for action, button in (("switch_off", "Switch off"), ("switch_on", "Switch on")):
        admin.open(f"{TOOLS}?q=ticket")
        page.get_by_role("checkbox").first.check()
        page.locator("select[name=action]").select_option(action)
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("heading", name=re.compile(rf"{button} \d+ tools\?"))).to_be_visible()
        admin.looks_right()
        page.get_by_role("button", name=button).click()
        expect(page.get_by_text(re.compile(r"\d+ tools changed\."))).to_be_visible()


def test_the_palette_leads_to_a_tool(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/")
    page.keyboard.press("Control+k")
    page.locator("#search-input-command").press_sequentially("find_customer")
    found = page.locator("[data-title=find_customer]")
    expect(found).to_be_visible()
    admin.looks_right()
    found.click()
    expect(page).to_have_title(re.compile("^find_customer"))


def test_a_bar_tells_its_calls_and_leads_to_them(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/")
    bar = page.locator(".chart-columns a").last
    bar.focus()
    expect(bar.locator(".chart-tip")).to_be_visible()
    admin.looks_right()
    bar.click()
    expect(page).to_have_url(re.compile("/admin/audit/record/.*since="))
    expect(page.get_by_text("Result of calls", exact=True)).to_be_visible()
