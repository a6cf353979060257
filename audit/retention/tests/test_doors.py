"""Retention in the admin, by REST and by command: the same verbs, the same refusals, everything on record."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection, connections
from django.test import Client
from procrastinate.contrib.django.models import ProcrastinateJob
from rest_framework.test import APIClient

from access import tokens
from access.models import User
from audit.holds import held
from audit.models import LegalHold, Record, RetentionClass
from audit.retention.archiving import run
from audit.retention.expiring import approve, drop, find, propose
from audit.retention.gauges import GAUGES, samples
from audit.retention.models import Archive, Expiry
from audit.retention.partitions import ahead, prepare
from audit.retention.state import leaving_at
from audit.retention.tasks import drop_expired
from audit.retention.tests.conftest import Story, make_person

REST = "/api/v1/retention/"


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def api(user: User) -> APIClient:
    _, secret = tokens.issue(user, name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def allow(user: User, *codenames: str) -> User:
    user.user_permissions.add(*Permission.objects.filter(codename__in=codenames))
    return User.objects.get(pk=user.pk)


def work() -> str:
    """What the job worker does for who asked last."""
    return drop_expired(**ProcrastinateJob.objects.filter(task_name="audit.drop").latest("id").args)


def said(response: Any) -> str:
    return " ".join(str(each) for each in response.context["messages"])


def test_two_persons_bring_a_month_out_of_the_ledger_in_the_admin(story: Story) -> None:
    page = f"/admin/audit/month/{story.month}/change/"
    ada, bob = (browser(allow(user, "view_month", "view_expiry")) for user in (story.ada, story.bob))
    story.export()
    act = page.replace("change", "{}").format
    assert "Propose" not in ada.get(page).content.decode().replace("Proposed", "")
    assert "3 records" in said(ada.post(act("find"), follow=True))
    assert "4 records" in said(ada.post(act("check"), follow=True))
    assert "Say why" in said(ada.post(act("propose"), {"reason": " "}, follow=True))
    assert "Somebody else" in said(ada.post(act("propose"), {"reason": "time"}, follow=True))
    assert "somebody else has to approve it" in ada.get(page).content.decode()
    assert "yourself" in said(ada.post(act("approve"), follow=True))
    assert "Approved" in said(bob.post(act("approve"), follow=True))
    assert "follows it" in said(bob.post(act("drop"), follow=True))
    assert "Waiting for the job worker…" in bob.get(page).content.decode()
    assert "not signed" in work()
    assert "not signed" in bob.get(page).content.decode()
    story.sealer.answer()
    bob.post(act("drop"))
    assert work() == "dropped"
    [dropped] = Record.objects.filter(code="records_dropped", object_id=str(story.expiry.pk))
    assert (dropped.actor, dropped.door) == ("bob", "admin")
    assert story.left() == ["c"]
    certificate = bob.get(f"/admin/audit/month/certificate/{story.expiry.pk}/")
    assert json.loads(certificate.content)["reason"] == "time"
    signature = bob.get(f"/admin/audit/month/certificate/{story.expiry.pk}/?sig")
    assert signature.content.startswith(b"mcpsite manifest\ngap\n")
    assert "Partly dropped" in bob.get("/admin/audit/month/").content.decode()


def test_who_only_looks_is_offered_nothing_and_can_do_nothing(story: Story) -> None:
    story.export()
    find()
    eve = browser(allow(story.eve, "view_month"))
    page = eve.get(f"/admin/audit/month/{story.month}/change/").content.decode()
    for button in ("Read it back again", ">Propose<", "Withdraw"):
        assert button not in page
    for name in ("export", "check", "find"):
        assert eve.post(f"/admin/audit/month/{story.month}/{name}/").status_code == 403
    assert "permission" in said(eve.post(f"/admin/audit/month/{story.month}/propose/", {"reason": "r"}, follow=True))
    assert story.expiry.state == "due"


def test_reading_a_page_of_a_month_changes_nothing(story: Story) -> None:
    story.export()
    find()
    ada = browser(allow(story.ada, "view_month"))
    for name in ("export", "find", "propose", "approve", "withdraw", "drop"):
        assert ada.get(f"/admin/audit/month/{story.month}/{name}/").status_code == 302
    assert story.expiry.state == "due"


def test_two_persons_bring_a_month_out_of_the_ledger_by_rest(story: Story) -> None:
    ada, bob = (api(allow(user, "view_month", "view_expiry", "view_archive")) for user in (story.ada, story.bob))
    month = f"{REST}months/{story.month:%Y-%m}/"
    assert ada.get(month).json()["archive"] is None
    assert ada.post(f"{month}export/").status_code == 202
    assert ada.post(f"{month}export/").status_code == 409
    archive = f"{REST}archives/{ada.get(month).json()['archive']}/"
    assert ada.get(archive).json()["state"] == "waiting"
    run(Archive.objects.get(), sign=story.sealer.sign)
    assert ada.post(f"{archive}check/").json() == {
        "ok": True, "message": "Each record is as it was sealed.", "records": 4,
    }  # fmt: skip
    find()
    expiry = f"{REST}expiries/{ada.get(month).json()['expiry']}/"
    assert ada.post(f"{expiry}propose/", {}).status_code == 400
    assert ada.post(f"{expiry}propose/", {"reason": "time"}).json()["state"] == "proposed"
    refused = ada.post(f"{expiry}approve/")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert ada.get(f"{expiry}certificate/").status_code == 404
    assert bob.post(f"{expiry}approve/").json()["approved_by"] == "bob"
    story.sealer.answer()
    assert "mcpsite-gap/1" in bob.get(f"{expiry}certificate/").json()["certificate"]
    asked = bob.post(f"{expiry}drop/")
    assert (asked.status_code, asked.json()["state"], asked.json()["stage"]) == (
        202, "approved", "Waiting for the job worker",
    )  # fmt: skip
    assert work() == "dropped"
    assert ada.get(month).json()["state"] == "reduced"
    for wrong in ("2024-13", "1999-01", "x"):
        assert ada.get(f"{REST}months/{wrong}/").status_code == 404


def test_rest_asks_for_the_permission(story: Story) -> None:
    story.export()
    find()
    eve = api(allow(story.eve, "view_month", "view_expiry", "view_archive"))
    for name in ("propose", "approve", "withdraw", "drop"):
        assert eve.post(f"{REST}expiries/{story.expiry.pk}/{name}/", {"reason": "r"}).status_code == 403
    assert eve.post(f"{REST}months/{story.month:%Y-%m}/export/").status_code == 403


def test_an_export_after_the_drop_holds_the_certificate(story: Story) -> None:
    story.export()
    expiry = approve(propose(story.find(), story.ada, "time", door="test"), story.bob, door="test")
    story.sealer.answer()
    drop(expiry, door="test")
    again = story.export()
    lines = (Path(again.place.removeprefix("file://")) / "gaps.jsonl").read_text().splitlines()
    texts = [json.loads(json.loads(line)["certificate"]) for line in lines]
    assert f"{story.month:%Y-%m}" in {each["month"] for each in texts}


# --- Classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_classes_are_checked_and_recorded() -> None:
    root = User.objects.create_superuser("root")
    client = api(root)
    assert "covers" in str(client.post(f"{REST}classes/", {"name": "short", "months": 3}).json())
    assert "no kind" in str(client.post(f"{REST}classes/", {"name": "x", "months": 3, "kinds": ["calls"]}).json())
    assert client.post(f"{REST}classes/", {"name": "x", "months": 0, "tools": ["a"]}).status_code == 400
    made = client.post(f"{REST}classes/", {"name": "short", "months": 3, "tools": ["noise"]}).json()
    assert client.patch(f"{REST}classes/{made['id']}/", {"months": 4}).json()["months"] == 4
    assert client.delete(f"{REST}classes/{made['id']}/").status_code == 204
    kinds = Record.objects.filter(object_type="audit.RetentionClass", object_id=str(made["id"])).order_by("id")
    assert list(kinds.values_list("code", flat=True)) == ["create", "update", "delete"]


@pytest.mark.django_db
def test_the_standard_class_stays() -> None:
    root = User.objects.create_superuser("root")
    standard = RetentionClass.objects.get(name="standard")
    assert api(root).delete(f"{REST}classes/{standard.pk}/").status_code == 409
    assert api(root).patch(f"{REST}classes/{standard.pk}/", {"name": "other"}).status_code == 400
    client = browser(root)
    assert client.post(f"/admin/audit/retentionclass/{standard.pk}/delete/", {"post": "yes"}).status_code == 403
    deleting = {"action": "delete_selected", "_selected_action": standard.pk, "post": "yes"}
    client.post("/admin/audit/retentionclass/", deleting)
    assert RetentionClass.objects.filter(name="standard").exists()


@pytest.mark.django_db
def test_months_are_counted_from_the_end_of_the_month() -> None:
    assert leaving_at(date(2024, 11, 1), 24) == datetime(2026, 12, 1, tzinfo=UTC)
    assert leaving_at(date(2024, 12, 1), 1) == datetime(2025, 2, 1, tzinfo=UTC)


# --- Holds ------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_hold_is_placed_and_released_in_the_admin_and_never_changed() -> None:
    root = User.objects.create_superuser("root")
    client = browser(root)
    form = {"name": "case 7", "matter": "7/2026", "scope": "principal", "value": "ada", "reason": "asked by court"}
    empty = {"since_0": "", "since_1": "", "until_0": "", "until_1": ""}
    refused = client.post("/admin/audit/legalhold/add/", {**form, **empty, "value": ""})
    assert "Name the principal" in refused.content.decode()
    assert client.post("/admin/audit/legalhold/add/", {**form, **empty}).status_code == 302
    hold = LegalHold.objects.get()
    assert (hold.placed_by, hold.in_force) == ("root", True)
    page = f"/admin/audit/legalhold/{hold.pk}/"
    assert "Release the hold" in client.get(f"{page}change/").content.decode()
    assert client.post(f"{page}change/", {**form, **empty, "value": "bob"}).status_code == 403
    assert client.post(f"{page}delete/", {"post": "yes"}).status_code == 403
    assert "Say why" in said(client.post(f"{page}release/", {"reason": ""}, follow=True))
    assert "released" in said(client.post(f"{page}release/", {"reason": "settled"}, follow=True))
    assert "released already" in said(client.post(f"{page}release/", {"reason": "again"}, follow=True))
    hold.refresh_from_db()
    assert (hold.value, hold.released_by, hold.release_reason) == ("ada", "root", "settled")
    codes = Record.objects.filter(object_id=str(hold.pk)).order_by("id").values_list("code", flat=True)
    assert list(codes) == ["create", "update"]


@pytest.mark.django_db
def test_releasing_needs_its_own_permission() -> None:
    user = make_person("dora", "add_legalhold", "view_legalhold")
    made = api(user).post(f"{REST}holds/", {"name": "h", "matter": "m", "scope": "everything", "reason": "r"})
    assert (made.status_code, made.json()["placed_by"]) == (201, "dora")
    page = f"{REST}holds/{made.json()['id']}/"
    assert api(user).post(f"{page}release/", {"reason": "r"}).status_code == 403
    assert browser(user).post(f"/admin/audit/legalhold/{made.json()['id']}/release/").status_code == 403
    assert api(user).delete(page).status_code == 405
    allowed = allow(user, "release_legalhold")
    assert api(allowed).post(f"{page}release/", {"reason": "r"}).json()["in_force"] is False
    assert api(allowed).post(f"{page}release/", {"reason": "r"}).status_code == 409


def test_what_is_held_of_a_person_is_known_before_it_is_erased(story: Story) -> None:
    begin = datetime(story.month.year, story.month.month, 1, tzinfo=UTC)
    LegalHold.objects.create(name="tool", matter="m", scope="tool", value="pay", reason="r")
    assert held("ada") == []
    LegalHold.objects.create(name="later", matter="m", scope="principal", value="ada", since=begin, reason="r")
    assert [each.name for each in held("ada")] == ["later"]
    assert held("ada", until=begin) == []
    assert held("bob") == []
    LegalHold.objects.create(name="all", matter="m", scope="everything", reason="r")
    assert [each.name for each in held("bob")] == ["all"]
    LegalHold.objects.update(released_at=begin)
    assert held("ada") == []


# --- Partitions, command, metrics -------------------------------------------------------------------------------------


def test_partitions_are_made_ahead_and_recorded(committed_db: None) -> None:
    prepare(door="test")
    assert ahead() == 3
    assert prepare(door="test") == []
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT max(month) FROM audit_month WHERE present")
        last = cursor.fetchone()[0]
        cursor.execute(f"DROP TABLE audit_record_{last:%Y%m}")
    assert ahead() == 2
    assert prepare(door="test") == [last]
    record = Record.objects.filter(code="partitions_made").latest("id")
    assert json.loads(record.detail or "")["months"] == [f"{last:%Y-%m}"]


def test_the_command_shows_finds_and_drops(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    story.export()
    call_command("retention", find=True)
    shown = capsys.readouterr().out
    assert f"{story.month:%Y-%m}: 3 records are past their time" in shown
    assert f"{story.month:%Y-%m}: exported, 3 records past their time" in shown
    approve(propose(story.expiry, story.ada, "r", door="test"), story.bob, door="test")
    story.sealer.answer()
    call_command("retention", drop=True)
    assert "3 records dropped under certificate" in capsys.readouterr().out


def test_metrics_tell_of_months_archives_and_holds(story: Story) -> None:
    story.export()
    find()
    LegalHold.objects.create(name="h", matter="m", scope="tool", value="x", reason="r")
    with connection.cursor() as cursor:
        cursor.execute(GAUGES)
        found = samples(cursor.fetchall())
    assert found["mcpsite_ledger_partitions_ahead"] == {(): [3]}
    assert found["mcpsite_ledger_archives"] == {("verified",): [1]}
    assert found["mcpsite_ledger_expiries"] == {("due",): [Expiry.objects.count()]}
    assert found["mcpsite_ledger_holds"] == {(): [1]}
    assert found["mcpsite_ledger_oldest_seconds"][()][0] > 29 * 28 * 86400
