"""An auditor's afternoon: find a call, read it, prove it offline, export, and take an evidence pack home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from mcpsite.tests.browser.chromium import Visitor, faults
from mcpsite.tests.browser.screenshots import call
from mcpsite.tests.conftest import Site

AUDITOR, PASSWORD = "ada.auditor", "a-long-walk-by-the-river"
VERIFIER = Path(__file__).resolve().parents[3] / "audit" / "verify.py"


def test_an_auditors_afternoon(browser: Browser, demo_site: Site, tmp_path: Path) -> None:
    call(demo_site, demo_site.tokens["support_agent"], "find_customer", {"query": "Patel"})
    call(demo_site, demo_site.tokens["analyst"], "get_customer", {"customer_id": 7})
    give_a_password(browser, demo_site)
    auditor = logs_in(browser, demo_site)
    rid = finds_a_call(auditor)
    proves_it_offline(auditor, rid, tmp_path)
    exports_what_is_listed(auditor, tmp_path)
    pack = builds_an_evidence_pack(auditor, tmp_path)
    opens_it_without_network(browser, pack)


def give_a_password(browser: Browser, site: Site) -> None:
    """To the demo's auditor, who has the role `auditor` and nothing else."""
    api = browser.new_context(base_url=f"{site.url}/api/v1/").request
    credentials = {"username": site.admin_user, "password": site.admin_password}
    token = api.post("auth/token/", data=credentials).json()["access"]
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    found = api.get("users/", params={"username": AUDITOR}, headers=headers).json()["results"]
    assert [user["roles"] for user in found] == [["auditor"]]
    answer = api.patch(f"users/{found[0]['id']}/", data={"password": PASSWORD}, headers=headers)
    assert answer.ok, answer.text()


def logs_in(browser: Browser, site: Site) -> Visitor:
    auditor = Visitor(browser, site)
    page = auditor.page
    page.goto("/admin/")
    page.get_by_label("Username").fill(AUDITOR)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(re.compile(r"/admin/(audit/overview/)?$"))
    auditor.looks_right()
    return auditor


def finds_a_call(auditor: Visitor) -> str:
    """By its tool, among everything; returns its id."""
    page = auditor.page
    auditor.open("/admin/audit/record/?kind=call&tool=find_customer")
    page.locator("#result_list a").first.click()
    told = page.locator("#content-main")
    expect(told).to_contain_text("find_customer")
    auditor.looks_right()
    found = re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", told.text_content() or "")
    assert found, "the story names the record's id"
    return found[0]


def proves_it_offline(auditor: Visitor, rid: str, folder: Path) -> None:
    """Downloads the proof from the page of the record, and shows it to the verifier in a process that knows no site."""
    with auditor.page.expect_download() as found:
        auditor.page.get_by_role("link", name="Download the proof").click()
    found.value.save_as(folder / "proof.json")
    said = verifier(folder, VERIFIER, "proof", "proof.json")
    assert (said["verdict"], said["record"]) == ("OK", rid)
    forged = json.loads((folder / "proof.json").read_text())
    forged["record"]["record"]["actor"] = "somebody.else"
    (folder / "forged.json").write_text(json.dumps(forged))
    assert verifier(folder, VERIFIER, "proof", "forged.json")["verdict"] == "MODIFIED"


def exports_what_is_listed(auditor: Visitor, folder: Path) -> None:
    page = auditor.page
    auditor.open("/admin/audit/record/?tool=find_customer&last=24h")
    auditor.looks_right()
    page.get_by_role("link", name="Export what is listed").click()
    expect(page.get_by_text("find_customer")).to_be_visible()
    expect(page.get_by_label("Decrypt the arguments")).to_have_count(0)
    auditor.looks_right()
    page.get_by_role("button", name="Make the export").click()
    place = auditor.unpack(folder / "export")
    auditor.looks_right()
    assert verifier(place, VERIFIER, "export", ".")["verdict"] == "OK"


def builds_an_evidence_pack(auditor: Visitor, folder: Path) -> Path:
    page = auditor.page
    auditor.open("/admin/audit/evidencepack/add/")
    auditor.looks_right()
    page.get_by_role("button", name="This month so far").click()
    page.get_by_label("Seed").fill("afternoon")
    page.get_by_label("All in scope").check()
    page.get_by_role("button", name="Make the pack").click()
    place = auditor.unpack(folder / "pack")
    auditor.looks_right()
    own = place / "verify.py"
    assert own.read_bytes() == VERIFIER.read_bytes()
    assert verifier(place, own, "export", ".")["verdict"] == "OK"
    assert verifier(place, own, "proof", "samples/0001.proof.json")["verdict"] == "OK"
    verdict = json.loads((place / "verdict.json").read_text())
    assert verdict["verdict"] == "OK", verdict
    return place


def opens_it_without_network(browser: Browser, place: Path) -> None:
    """As a file, with the network away, in light and dark."""
    for scheme in ("light", "dark"):
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 390, "height": 844})
        page = context.new_page()
        complaints = heard_of(page)
        page.goto((place / "index.html").as_uri())
        expect(page.get_by_role("heading", name="The verifier found the ledger of this period")).to_be_visible()
        expect(page.get_by_role("region", name="Access by user and role")).to_contain_text("find_customer")
        expect(page.get_by_role("region", name="Who was refused")).to_contain_text("get_customer")
        assert not complaints
        assert not faults(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()


def heard_of(page: Page) -> list[str]:
    """Fills up with what the page complains of, and with what it could not fetch."""
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("requestfailed", lambda request: heard.append(request.url))
    return heard


def verifier(folder: Path, script: Path, *words: str) -> dict[str, Any]:
    """What the verifier says in that folder, with nothing of the site around it."""
    done = subprocess.run(
        [sys.executable, "-I", str(script), *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said
