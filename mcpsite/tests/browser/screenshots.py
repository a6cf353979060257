"""Makes the pictures of the guides: `make screenshots` starts an installation with the demo, has a day of it go by, and
photographs its pages into docs/images/.
"""

from __future__ import annotations

import base64
import json
import math
import random
import re
import struct
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from playwright.sync_api import Browser
from psycopg.rows import dict_row

from audit.entry import COLUMNS, INSERT, leaf_of, mac_of, uuid7
from audit.verify import fields_of, time_text
from keyring.keys import KeyRing, parse
from mcpsite.datadir import OWNER_ROLE, DataDir
from mcpsite.tests.browser.chromium import NARROW, WIDE, Scheme, Visitor, chromium
from mcpsite.tests.browser.test_first_day import adds_a_data_source, checks_and_synchronises_it
from mcpsite.tests.conftest import Site, running_site

IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
LARGEST_TOGETHER = 3_000_000

# --- A day goes by ----------------------------------------------------------------------------------------------------

# Who calls what.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("support_agent", "find_customer", {"query": "Patel"}),
    ("support_agent", "list_open_tickets", {"priority": "urgent"}),
    ("support_agent", "get_ticket_thread", {"ticket_id": 4192}),
    ("support_agent", "get_order", {"number": "SO-108304"}),
    ("support_agent", "track_shipment", {"reference": "SO-108025"}),
    ("support_agent", "search_tickets", {"query": "damaged", "status": "open"}),
    ("support_agent", "create_note", {"ticket_id": 4192, "text": "Cancelled before it was packed."}),
    ("analyst", "ticket_statistics", {"days": 30}),
    ("analyst", "top_products", {"days": 30, "category": "Coffee"}),
    ("analyst", "sales_by_month", {"months": 6}),
    ("operations", "orders_to_ship", {"max_results": 10}),
    ("operations", "late_shipments", {"carrier": "DHL"}),
    ("operations", "shipping_quote", {"country": "FR", "weight_kg": 2.5}),
    ("operations", "get_order", {"number": "SO-108076"}),
]
# And what is refused: two tools that are not granted, a country that is none.
REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("support_agent", "sales_by_month", {"months": 3}),
    ("analyst", "get_customer", {"customer_id": 7}),
    ("operations", "shipping_quote", {"country": "France", "weight_kg": 2.5}),
]
ROUNDS = 6

# What was called is put into the hours before as well: written with the keys of the installation, so that it is sealed.
_SOME = """
SELECT {columns} FROM audit_record
WHERE kind IN ('call', 'denied', 'invalid') AND door = 'mcp' AND at > now() - interval '50 minutes'
ORDER BY md5(rid::text || %(hour)s) LIMIT %(many)s
"""
_JSON: dict[str, Callable[[Any], Any]] = {
    "uuid": str,
    "timestamptz": time_text,
    "text": str,
    "bigint": int,
    "bytea": lambda raw: bytes(raw).hex(),
}


def let_a_day_go_by(site: Site) -> None:
    """Calls by several people, made now, and their like in the hours before."""
    for who, tool, arguments in [*REFUSED, *CALLS * ROUNDS]:
        call(site, site.tokens[who], tool, arguments)
    data = DataDir(site.up.data)
    keys = parse(data.secret("encryption_keys"))
    names = ", ".join(name for name, _ in COLUMNS)
    with psycopg.connect(data.database_url(OWNER_ROLE), row_factory=dict_row) as connection:
        now = datetime.now(UTC)
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        for hour in range(1, 24):
            back = timedelta(hours=hour)
            # Most at noon, hardly any at night.
            many = round(6 + 70 * math.exp(-(((now - back).hour - 12.5) ** 2) / 16))
            found = connection.execute(_SOME.format(columns=names).encode(), {"hour": str(hour), "many": many})
            for one in found.fetchall():
                at = one["at"] - back - timedelta(minutes=50) * random.random()
                if at >= month:
                    write_again(connection, keys, {**one, "at": at})


def write_again(connection: psycopg.Connection[Any], keys: KeyRing, values: dict[str, Any]) -> None:
    """The like of a record at another time, as a writer of the installation would write it."""
    took = values["total_us"]
    values |= {"rid": uuid7(), "call_id": uuid7(), "writer_seq": None}
    values["total_us"] = None if took is None else round(took * (0.6 + random.random()))
    fields = fields_of({name: None if values[name] is None else _JSON[kind](values[name]) for name, kind in COLUMNS})
    leaf = leaf_of(tuple(fields))
    row = [*(values[name] for name, _ in COLUMNS), leaf, mac_of(keys, leaf, values["writer_id"], None)]
    connection.execute(f"{INSERT}({', '.join(['%s'] * len(row))})".encode(), row)


def call(site: Site, token: str, tool: str, arguments: dict[str, Any]) -> None:
    """One call, as an older client makes it; what comes of it is for the pictures to show."""
    params = {"name": tool, "arguments": arguments}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "User-Agent": "Claude Desktop"}
    with urllib.request.urlopen(urllib.request.Request(site.mcp_url, body, headers)) as answer:
        answer.read()


# --- The pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """One file of docs/images/: a page, what is done there first, and the screen that it is looked at with."""

    name: str
    path: str
    prepare: Callable[[Visitor], None] = lambda visitor: None
    size: tuple[int, int] = WIDE
    scheme: Scheme = "light"


def follow(selector: str) -> Callable[[Visitor], None]:
    """Go where the first link leads that matches."""

    def click(visitor: Visitor) -> None:
        visitor.page.locator(selector).first.click()
        visitor.page.wait_for_load_state("networkidle")

    return click


def check_the_clock(visitor: Visitor) -> None:
    """The demo's other sources were tested when they were loaded."""
    follow("#result_list a:text-is('time')")(visitor)
    visitor.page.get_by_role("link", name="Test connection").click()
    visitor.page.get_by_role("button", name="Test", exact=True).click()
    visitor.page.get_by_text("Reachable").wait_for()
    visitor.open("/admin/")


def add_a_source(visitor: Visitor) -> None:
    """As the first day's test does."""
    adds_a_data_source(visitor)
    checks_and_synchronises_it(visitor)


def try_a_tool(visitor: Visitor) -> None:
    """With the rights of a role."""
    page = visitor.page
    follow("#result_list a:text-is('list_open_tickets')")(visitor)
    page.get_by_role("link", name="Try").click()
    page.get_by_role("combobox", name="With whose rights").select_option(label="The role support_agent")
    page.get_by_label("max_results").fill("5")
    page.get_by_role("button", name="Call").last.click()
    page.get_by_role("heading", name="Called").wait_for()


def edit_a_role(visitor: Visitor) -> None:
    """A grant is being added: the preview shows what it would bring."""
    follow("#result_list a:text-is('analyst')")(visitor)
    visitor.page.get_by_role("link", name="Add another Grant").click()
    visitor.choose("grants-1-tool", "late_shipments")
    visitor.page.locator("#role-tools").get_by_text("New", exact=True).wait_for()


def make_a_token(visitor: Visitor) -> None:
    """The one page that shows a secret; this one is thrown away with its installation."""
    visitor.choose("user", "analyst")
    visitor.page.get_by_label("Name").fill("nightly report")
    visitor.page.get_by_role("button", name="Save").click()
    visitor.page.locator("#token-secret").wait_for()


def run_an_agent(visitor: Visitor) -> None:
    """The demo's agent, with its steps."""
    page = visitor.page
    follow("#result_list a:text-is('support-triage')")(visitor)
    page.get_by_role("link", name=re.compile(r"\bRun$")).click()
    page.get_by_label("What shall it do?").fill("A customer asks where order SO-100042 is.")
    page.get_by_role("button", name="Run").click()
    page.locator("#run-answer").wait_for()


def export_records(visitor: Visitor) -> None:
    """From the list to the archive."""
    visitor.page.get_by_role("link", name="Export what is listed").click()
    visitor.page.get_by_role("button", name="Make the export").click()
    visitor.page.locator("a[download]").wait_for(timeout=60_000)


def open_a_pack(visitor: Visitor) -> None:
    """The page of an evidence pack, as it opens at home."""
    page = visitor.page
    page.get_by_role("button", name="This month so far").click()
    page.get_by_label("Seed").fill("november")
    page.get_by_role("button", name="Make the pack").click()
    page.goto((visitor.unpack(Path(tempfile.mkdtemp())) / "index.html").as_uri())


def connect_a_client(visitor: Visitor) -> None:
    """What to paste where, without a token."""
    follow("#result_list a:text-is('support')")(visitor)
    visitor.page.get_by_role("link", name="Connect a client").click()
    visitor.page.get_by_role("tab", name="VS Code").click()


def open_the_tools(visitor: Visitor) -> None:
    """The operations on tools, of which one is a call."""
    heading = visitor.page.locator("#operations-tag-tools")
    heading.click()
    visitor.page.locator(".opblock").first.wait_for()
    heading.evaluate("element => element.scrollIntoView()")


RECORDS = "/admin/audit/record/"
PICTURES = [
    Picture("dashboard", "/admin/tools/datasource/", check_the_clock),
    Picture("dashboard-dark", "/admin/", scheme="dark"),
    Picture("dashboard-phone", "/admin/", size=NARROW),
    Picture("source-new", "/admin/tools/datasource/add/?kind=mcp"),
    Picture("tools", "/admin/tools/tool/"),
    Picture("tool-tried", "/admin/tools/tool/?q=list_open_tickets", try_a_tool),
    Picture("role", "/admin/access/role/", edit_a_role),
    Picture("token", "/admin/access/apitoken/add/", make_a_token),
    Picture("records", RECORDS),
    Picture("records-dark", RECORDS, scheme="dark"),
    Picture("records-phone", RECORDS, size=NARROW),
    Picture("record", f"{RECORDS}?kind__exact=call&tool=get_order", follow("#result_list a")),
    Picture("record-denied", f"{RECORDS}?kind__exact=denied", follow("#result_list a")),
    Picture("export", f"{RECORDS}?last=24h&decision=deny", export_records),
    Picture("evidence-pack", "/admin/audit/evidencepack/add/", open_a_pack),
    Picture("agent-run", "/admin/agents/agent/", run_an_agent),
    Picture("connect", "/admin/tools/toolset/", connect_a_client),
    Picture("api", "/api/docs/", open_the_tools),
    Picture("source", "/admin/", add_a_source),
]


def photograph(browser: Browser, site: Site, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture that is wanted; one visitor for each kind of screen."""
    visitors: dict[tuple[tuple[int, int], Scheme], Visitor] = {}
    for picture in PICTURES:
        if wanted and picture.name not in wanted:
            continue
        screen = (picture.size, picture.scheme)
        if screen not in visitors:
            visitors[screen] = Visitor(browser, site, *screen)
            visitors[screen].log_in()
        visitor = visitors[screen]
        visitor.open(picture.path)
        picture.prepare(visitor)
        visitor.page.wait_for_load_state("networkidle")
        visitor.page.evaluate("document.activeElement.blur()")
        yield picture.name, smaller(browser, visitor.page.screenshot())


# --- Their size -------------------------------------------------------------------------------------------------------

# Chromium decodes and counts; each pixel becomes the nearest of the 256 most frequent colours.
_PALETTE = """async (source) => {
    const bitmap = await createImageBitmap(await (await fetch("data:image/png;base64," + source)).blob());
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, bitmap.width, bitmap.height).data.buffer);
    const counts = new Map();
    for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
    const frequent = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 256).map(([pixel]) => pixel);
    const part = (pixel, shift) => (pixel >>> shift) & 255;
    const far = (a, b) => [0, 8, 16].reduce((sum, shift) => sum + (part(a, shift) - part(b, shift)) ** 2, 0);
    const nearest = new Map();
    for (const pixel of counts.keys()) {
        const distances = frequent.map((other) => far(pixel, other));
        nearest.set(pixel, distances.indexOf(Math.min(...distances)));
    }
    let text = "";
    for (const pixel of pixels) text += String.fromCharCode(nearest.get(pixel));
    const palette = frequent.flatMap((pixel) => [part(pixel, 0), part(pixel, 8), part(pixel, 16)]);
    return { width: bitmap.width, height: bitmap.height, palette, indices: btoa(text) };
}"""


def smaller(browser: Browser, png: bytes) -> bytes:
    """The picture with a palette: less than half the size, and to the eye the same."""
    page = browser.new_page()
    found = page.evaluate(_PALETTE, base64.b64encode(png).decode())
    page.close()
    width, height, indices = found["width"], found["height"], base64.b64decode(found["indices"])
    lines = b"".join(b"\0" + indices[start : start + width] for start in range(0, width * height, width))
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"PLTE", bytes(found["palette"])), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def main() -> None:
    """Write all pictures, or those that are named."""
    IMAGES.mkdir(exist_ok=True)
    with running_site() as site, chromium() as browser:
        let_a_day_go_by(site)
        for name, png in photograph(browser, site, set(sys.argv[1:])):
            (IMAGES / f"{name}.png").write_bytes(png)
            print(f"docs/images/{name}.png  {len(png) / 1000:.0f} kB", flush=True)
    together = sum(path.stat().st_size for path in IMAGES.glob("*.png"))
    if together > LARGEST_TOGETHER:
        sys.exit(f"docs/images/ has {together} bytes: keep it below {LARGEST_TOGETHER}.")


if __name__ == "__main__":
    main()
