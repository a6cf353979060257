"""Exports by REST: asked for, followed, downloaded by range, and only by who may."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient
from rest_framework.test import APIClient

from access import tokens
from audit.entry import Entry
from audit.export.models import Export
from audit.export.tests.conftest import made, make_user
from audit.ledger import record
from audit.models import Record

EXPORTS = "/api/v1/audit/exports/"
AUDITOR = ("view_record", "view_export", "add_export")


def client_of(user, *scopes: str) -> APIClient:
    _, secret = tokens.issue(user, name="test", scopes=list(scopes or ("read", "write")))
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def test_an_export_is_asked_for_followed_and_deleted(sealer):
    record(Entry(kind="call", code="ok", tool="by_rest"))
    client = client_of(make_user("dora", *AUDITOR, "delete_export"))
    answer = client.post(EXPORTS, {"form": "csv", "filters": {"tool": "by_rest"}})
    assert answer.status_code == 202
    address = answer["Location"]
    assert answer.json()["state"] == "waiting"
    made(Export.objects.get(pk=answer.json()["id"]))
    found = client.get(address).json()
    assert (found["state"], found["records"], found["scope"]) == ("done", 1, {"tool": "by_rest"})
    assert [each["id"] for each in client.get(EXPORTS, {"state": "done"}).json()["results"]] == [found["id"]]
    assert client.post(f"{address}cancel/").json()["code"] == "export_finished"
    assert client.delete(address).status_code == 204
    assert client.get(address).status_code == 404


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filters": {"tol": "x"}}, "filters.tol"),
        ({"filters": {"since": "yesterday"}}, "filters.since"),
        ({"form": "xlsx"}, "form"),
        ({"form": "pack"}, "form"),
        ({"filter": {}}, "filter"),
    ],
)
def test_what_cannot_be_read_is_refused(body, field):
    answer = client_of(make_user("dora", *AUDITOR)).post(EXPORTS, body)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [field]
    assert not Export.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("permissions", [(), ("view_export",), ("add_export", "view_export"), ("view_record",)])
def test_who_may_not_see_records_or_make_exports_is_refused(permissions):
    assert client_of(make_user("emil", *permissions)).post(EXPORTS, {}).status_code == 403
    assert not Export.objects.exists()


@pytest.mark.django_db
def test_arguments_need_a_permission_and_a_reason():
    body = {"payloads": True, "reason": "Ticket 7"}
    assert client_of(make_user("emil", *AUDITOR)).post(EXPORTS, body).status_code == 403
    client = client_of(make_user("dora", *AUDITOR, "read_arguments"))
    assert client.post(EXPORTS, {"payloads": True}).json()["code"] == "reason_required"
    assert client.post(EXPORTS, body).status_code == 202


def ready(tool: str, **values) -> Export:
    record(Entry(kind="call", code="ok", tool=tool))
    return made(Export.objects.create(form="jsonl", scope={"tool": tool}, asked_by="x", asked_by_id="x", **values))


async def fetched(user, export: Export, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    _, secret = await sync_to_async(tokens.issue)(user, name="test", scopes=["read"])
    answer: Any = await AsyncClient().get(
        f"{EXPORTS}{export.pk}/download/", headers={"Authorization": f"Bearer {secret}", **headers}
    )
    parts = [part async for part in answer.streaming_content] if answer.streaming else [answer.content]
    return answer.status_code, b"".join(parts), dict(answer.items())


async def test_it_is_downloaded_whole_or_by_ranges_and_that_is_on_record(sealer, monkeypatch):
    monkeypatch.setattr("audit.export.parts.PART_BYTES", 300)
    export = await sync_to_async(ready)("ranges")
    user = await sync_to_async(make_user)("dora", "view_record", "view_export")
    status, whole, headers = await fetched(user, export)
    assert (status, len(whole), headers["Content-Length"]) == (200, export.size, str(export.size))
    assert headers["ETag"] == f'"{export.digest}"'
    assert export.filename in headers["Content-Disposition"]
    recorded = Record.objects.filter(code="export_downloaded", object_id=str(export.pk)).order_by("id")
    assert await sync_to_async(recorded.count)() == 1
    size = export.size
    for wanted, first, last in [
        ("bytes=0-0", 0, 0),
        ("bytes=299-301", 299, 301),
        ("bytes=500-", 500, size - 1),
        ("bytes=-7", size - 7, size - 1),
        (f"bytes=1-{size * 2}", 1, size - 1),
    ]:
        status, part, headers = await fetched(user, export, Range=wanted)
        assert (status, part) == (206, whole[first : last + 1]), wanted
        assert headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        latest = await sync_to_async(recorded.last)()
        assert latest is not None
        assert json.loads(latest.detail or "")["range"] == f"{first}-{last}"
    for wanted in (f"bytes={size}-", "bytes=-0", "bytes=5-3"):
        assert (await fetched(user, export, Range=wanted))[0] == 416, wanted
    assert (await fetched(user, export, **{"Range": "bytes=0-0", "If-Range": '"other"'}))[1] == whole


async def test_only_who_may_see_it_downloads_it(sealer):
    plain, decrypted = await sync_to_async(ready)("plain"), await sync_to_async(ready)("decrypted", payloads=True)
    listing = await sync_to_async(make_user)("emil", "view_export")
    auditor = await sync_to_async(make_user)("dora", "view_export", "view_record")
    reader = await sync_to_async(make_user)("zoe", "view_export", "view_record", "read_arguments")
    assert (await fetched(listing, plain))[0] == 403
    assert (await fetched(auditor, plain))[0] == 200
    assert (await fetched(auditor, decrypted))[0] == 403
    assert (await fetched(reader, decrypted))[0] == 200


async def test_what_is_not_ready_is_not_downloaded(committed_db):
    export = await sync_to_async(Export.objects.create)(form="csv", asked_by="x", asked_by_id="x")
    user = await sync_to_async(make_user)("dora", "view_record", "view_export")
    status, body, _ = await fetched(user, export)
    assert (status, b"export_not_ready" in body) == (409, True)
