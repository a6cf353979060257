"""Debian's Chromium, driven by Playwright, that hears every complaint of a page and sees it as axe does."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect, sync_playwright

from mcpsite.tests.conftest import Site

MISSING = (
    "Chromium is not installed. The tests of pages need it:"
    " apt-get install -y --no-install-recommends chromium (as root)"
)
WIDE, NARROW = (1440, 900), (390, 844)
# On a machine that does much else; what is there is seen at once.
_PATIENCE_MS = 30_000
Scheme = Literal["light", "dark"]
# A page reports what its content security policy stopped; nothing may move while colours are measured.
_ON_EVERY_PAGE = """
document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`The policy stopped ${event.violatedDirective}: ${event.blockedURI}`));
const still = new CSSStyleSheet();
still.replaceSync("*, *::before, *::after { transition: none !important; animation: none !important; }");
document.adoptedStyleSheets = [still];
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; fails with a sentence where it is not installed."""
    expect.set_options(timeout=30_000)
    executable = shutil.which("chromium")
    assert executable, MISSING
    with sync_playwright() as playwright:
        # Its sandbox needs what containers and root do not have; it only ever sees pages of ours.
        expect.set_options(timeout=_PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """One person at one screen: a page, and what it complained of."""

    def __init__(self, browser: Browser, site: Site, size: tuple[int, int] = WIDE, scheme: Scheme = "light") -> None:
        width, height = size
        self.site = site
        self.context = browser.new_context(
            base_url=site.url,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
        )
        self.context.add_init_script(_ON_EVERY_PAGE)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(_PATIENCE_MS)
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))
        self.page.on("response", self._answered)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.url}: status {response.status}")

    def log_in(self) -> None:
        """As the administrator who was made at the first start."""
        self.page.goto("/admin/")
        self.page.get_by_label("Username").fill(self.site.admin_user)
        self.page.get_by_label("Password").fill(self.site.admin_password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url("**/admin/")

    def share_session(self, other: Visitor) -> None:
        """Be who the other one is."""
        self.context.add_cookies(other.context.cookies())  # type: ignore[arg-type]

    def open(self, path: str) -> None:
        """The page with all that it loads."""
        self.page.goto(path)
        self.page.wait_for_load_state("networkidle")

    def choose(self, field: str, text: str) -> None:
        """The choice of that text in a searchable list."""
        self.page.locator(f"[name={field}] + .select2").click()
        self.page.locator(".select2-search__field").last.fill(text)
        self.page.locator(".select2-results__option", has_text=text).first.click()

    def unpack(self, place: Path) -> Path:
        """The archive that the page offers as soon as it is ready, unpacked into `place`."""
        link = self.page.locator("a[download]")
        link.wait_for(timeout=60_000)
        with self.page.expect_download() as found:
            link.click()
        archive = place.with_suffix(".zip")
        found.value.save_as(archive)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(place)
        return place

    def looks_right(self) -> None:
        """No complaint so far, no serious fault of accessibility in light or dark, and no sideways scrolling."""
        assert not self.complaints, "\n".join(self.complaints)
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function("!document.querySelector('[aria-busy=true]')")
        for scheme in ("light", "dark"):
            self.page.evaluate("dark => document.documentElement.classList.toggle('dark', dark)", scheme == "dark")
            found = faults(self.page, *(["color-contrast"] if scheme == "dark" else []))
            assert not found, f"{self.page.url}, {scheme}:\n{found}"
        self.page.evaluate("document.documentElement.classList.remove('dark')")
        assert not self.page.evaluate("document.documentElement.scrollWidth > innerWidth"), f"{self.page.url}: too wide"


def faults(page: Page, *rules: str) -> str:
    """The serious and critical faults that axe finds, by these rules or by all, a paragraph for each element."""
    options: dict[str, Any] = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found: dict[str, Any] = Axe().run(page, options=options).response
    return "\n".join(
        f"  {fault['id']} ({fault['impact']}): {node['html'][:200]}\n    {node.get('failureSummary', '')[:300]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    )
