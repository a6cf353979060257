"""Exports in the admin: from the list of records to the download."""

from __future__ import annotations

import re

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

from access.models import User
from audit.entry import Entry
from audit.export.models import Export
from audit.export.tests.conftest import downloaded, made, make_user
from audit.ledger import record
from audit.models import Record

ADD = "/admin/audit/export/add/"
AUDITOR = ("view_record", "view_export", "add_export")


@pytest.fixture
def auditor(db) -> Client:
    client = Client()
    client.force_login(make_user("dora", *AUDITOR))
    return client


def test_the_list_leads_to_an_export_of_what_it_shows(auditor):
    page = auditor.get("/admin/audit/record/?tool=find&last=24h&q=x").content.decode()
    address = re.search(r'href="(/admin/audit/export/add/\?[^"]*)"', page)[1].replace("&amp;", "&")
    form = auditor.get(address)
    assert form.status_code == 200
    assert dict(form.context["filters"]) == {"tool": "find", "last": "24h", "q": "x"}


def test_who_may_not_export_finds_no_link(db):
    client = Client()
    client.force_login(make_user("emil", "view_record"))
    assert b"/admin/audit/export/add/" not in client.get("/admin/audit/record/").content
    assert client.get(ADD).status_code == 403


def test_what_is_asked_for_is_followed_on_its_page(auditor):
    answer = auditor.post(ADD, {"form": "csv", "tool": "find", "last": "1h"})
    export = Export.objects.get()
    assert answer["Location"] == f"/admin/audit/export/{export.pk}/change/"
    assert (export.form, export.scope["tool"], "since" in export.scope) == ("csv", "find", True)
    page = auditor.get(answer["Location"])
    assert b'hx-select="#export"' in page.content
    assert b"find" in page.content
    Export.objects.filter(pk=export.pk).update(state="running", stage="Reading records")
    assert b"Its worker has ended" in auditor.get(answer["Location"]).content
    Export.objects.filter(pk=export.pk).update(state="waiting")
    auditor.post(f"/admin/audit/export/{export.pk}/cancel/")
    page = auditor.get(answer["Location"])
    assert b'hx-select="#export"' not in page.content
    assert b"Cancelled" in page.content
    assert auditor.get("/admin/audit/export/").status_code == 200


def test_what_is_wrong_is_said_and_nothing_is_made(auditor):
    for wrong, said in [
        ({"form": "csv", "since": "yesterday"}, b"is a time"),
        ({"form": "pack"}, b"Choose JSON lines or CSV"),
    ]:
        answer = auditor.post(ADD, wrong)
        assert (answer.status_code, said in answer.content) == (400, True)
    assert auditor.post(ADD, {"form": "csv", "payloads": "1", "reason": "x"}).status_code == 403
    assert not Export.objects.exists()


def test_arguments_are_offered_to_who_may_read_them_and_need_a_reason(db):
    client = Client()
    client.force_login(make_user("zoe", *AUDITOR, "read_arguments"))
    assert b'name="payloads"' in client.get(ADD).content
    assert b"Give a reason" in client.post(ADD, {"form": "csv", "payloads": "1"}).content
    client.post(ADD, {"form": "csv", "payloads": "1", "reason": "Ticket 7"})
    assert Export.objects.get().reason == "Ticket 7"


def test_hostile_words_stay_words(auditor):
    page = auditor.get(ADD, {"tool": "<script>alert(1)</script>"}).content
    assert b"<script>alert(1)" not in page
    assert b"&lt;script&gt;alert(1)" in page


async def test_it_is_downloaded(sealer):
    def ready() -> tuple[Export, User]:
        record(Entry(kind="call", code="ok", tool="by_admin"))
        export = Export.objects.create(form="jsonl", scope={"tool": "by_admin"}, asked_by="x", asked_by_id="x")
        return made(export), make_user("dora", *AUDITOR)

    export, user = await sync_to_async(ready)()
    answer, raw = await downloaded(user, f"/admin/audit/export/{export.pk}/download/")
    assert (answer.status_code, len(raw)) == (200, export.size)


def test_it_can_be_deleted_by_who_may(sealer):
    record(Entry(kind="call", code="ok", tool="gone"))
    export = made(Export.objects.create(form="jsonl", scope={"tool": "gone"}, asked_by="x", asked_by_id="x"))
    client = Client()
    client.force_login(make_user("dora", *AUDITOR, "delete_export"))
    assert client.get(f"/admin/audit/export/{export.pk}/delete/").status_code == 200
    assert client.post(f"/admin/audit/export/{export.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Export.objects.exists()
    assert Record.objects.filter(code="export_deleted", object_id=str(export.pk)).exists()
