"""An agent in the admin: it is given a task, and its steps appear as it takes them."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from mcpsite.tests.browser.chromium import Visitor


def test_an_agent_takes_its_steps_on_the_page(admin: Visitor) -> None:
    page = admin.page
    admin.open("/admin/agents/agent/")
    page.get_by_role("link", name="support-triage").click()
    admin.looks_right()
    page.get_by_role("link", name=re.compile(r"\bRun$")).click()
    page.get_by_label("What shall it do?").fill("Where is order SO-100042?")
    admin.looks_right()
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#run-answer-text")).to_contain_text("SO-100042")
    expect(page.locator("#run-steps")).to_contain_text("get_order")
    admin.looks_right()
