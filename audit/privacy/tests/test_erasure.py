"""Erasure: what was kept of a person is unreadable for ever, and every record still verifies."""

from __future__ import annotations

import html
import io
import json
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse

from access import tokens
from access.models import User
from audit.datakeys import Subject
from audit.entry import COLUMNS, leaf_of
from audit.export.models import Export
from audit.holds import Held
from audit.ledger import Entry, record
from audit.models import DataKey, LegalHold, Record
from audit.opening import KeyDestroyed, payload_of
from audit.privacy.erasure import ErasureRefused, erase, survey
from audit.subjects import UnknownSubject, subject_hash, subject_key, subject_of

pytestmark = pytest.mark.django_db


def make_user(name: str = "", **values: Any) -> User:
    return User.objects.create_user(name or f"u-{uuid.uuid4().hex[:8]}", **values)


def make_call(user: User | None, **values: Any) -> Record:
    who = {"actor": user.username, "actor_id": str(user.pk)} if user else {}
    fields = {"kind": "call", "code": "ok", "arguments": b'{"a":1}', **who, **values}
    return Record.objects.get(rid=record(Entry(**fields)))


def customer(value: str) -> Subject:
    return Subject("customer", subject_hash(subject_key(), "customer", value))


def client_of(*permissions: str) -> Client:
    user = make_user(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def hold(scope: str = "everything", value: str = "") -> LegalHold:
    return LegalHold.objects.create(
        name=f"h-{uuid.uuid4().hex[:6]}", matter="case 12", scope=scope, value=value, reason="r", placed_by="x"
    )


# --- The verb ---------------------------------------------------------------------------------------------------------


def test_what_was_kept_is_unreadable_and_the_leaves_are_as_before() -> None:
    user = make_user()
    mine, other = [make_call(user), make_call(user)], make_call(make_user())
    assert survey("user", user.username, door="command").keys == 2
    done = erase("user", user.username, "request 7", door="command")
    assert (done.keys, len(done.months)) == (2, 1)
    for each in mine:
        with pytest.raises(KeyDestroyed):
            payload_of(each)
        assert leaf_of(_fields(each)) == bytes(each.leaf)
    assert payload_of(other).arguments == b'{"a":1}'
    with connection.cursor() as cursor:
        cursor.execute("SELECT wrapped, destroyed_by, reason FROM audit_dek WHERE id = %s", [mine[0].key_id])
        assert cursor.fetchone() == (None, "command", "request 7")
    assert (
        survey("user", user.username, door="command").keys,
        survey("user", user.username, door="command").destroyed,
    ) == (0, 2)


def _fields(made: Record) -> tuple[bytes | None, ...]:
    names = ", ".join(name for name, _ in COLUMNS)
    with connection.cursor() as cursor:
        raw = cursor.connection.pgconn.exec_params(
            f"SELECT {names} FROM audit_record WHERE rid = $1".encode(), [made.rid.bytes], [2950], [1], 1
        )
    return tuple(raw.get_value(0, column) for column in range(raw.nfields))


def test_an_erasure_is_on_record_with_its_reason() -> None:
    user, officer = make_user(), make_user()
    make_call(user)
    erase("user", user.username, " request 7 ", door="rest", actor=officer)
    found = Record.objects.filter(code="subject_erased").latest("id")
    detail = json.loads(found.detail or "")
    assert (found.actor, found.object_id) == (officer.username, f"user:{user.pk}")
    assert (detail["label"], detail["reason"], detail["keys"]) == (user.username, "request 7", 1)


def test_a_customer_is_erased_by_value_and_the_value_stands_nowhere() -> None:
    value = f"C-{uuid.uuid4().hex}"
    kept = make_call(make_user(), subject=customer("other"))
    gone = make_call(make_user(), subject=customer(value))
    erase("customer", value, "request 8", door="command")
    with pytest.raises(KeyDestroyed):
        payload_of(gone)
    assert payload_of(kept).arguments
    assert value not in (Record.objects.filter(code="subject_erased").latest("id").detail or "")
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(d::text, '') FROM audit_dek d")
        assert value not in cursor.fetchone()[0]


def test_a_user_whose_account_is_gone_is_known_by_the_records() -> None:
    user = make_user()
    name, made = user.username, make_call(user)
    user.delete()
    assert subject_of("user", name).value == made.actor_id
    assert erase("user", name, "r", door="command").keys == 1


def test_asking_whether_a_customer_occurs_is_on_record() -> None:
    make_call(make_user(), subject=customer("c-1"))
    assert survey("customer", "c-1", door="rest", actor=make_user("asker")).keys == 1
    asked = Record.objects.get(code="value_sought", actor="asker")
    assert "c-1" not in (asked.detail or "")


def test_exports_of_decrypted_arguments_go_with_an_erasure() -> None:
    made, under_way, plain = (
        Export.objects.create(form="jsonl", payloads=payloads, state=state, asked_by="x", asked_by_id="x")
        for payloads, state in ((True, "done"), (True, "running"), (False, "done"))
    )
    made.parts.create(number=0, data=b"{}")
    user = make_user()
    make_call(user)
    erase("user", user.username, "r", door="command")
    for each in (made, under_way, plain):
        each.refresh_from_db()
    assert (made.state, made.parts.count(), "ask for it anew" in made.problem) == ("expired", 0, True)
    assert (under_way.cancel_asked, plain.state) == (True, "done")
    assert Record.objects.filter(code="export_expired", object_id=str(made.pk)).exists()


@pytest.mark.parametrize(("reason", "said"), [("", "Say why"), (" \u200b. ", "Say why")])
def test_without_a_reason_nothing_is_erased(reason: str, said: str) -> None:
    user = make_user()
    made = make_call(user)
    with pytest.raises(ErasureRefused, match=said):
        erase("user", user.username, reason, door="command")
    assert payload_of(made).arguments


def test_what_is_not_there_is_not_erased() -> None:
    with pytest.raises(UnknownSubject, match="no user 'nobody-at-all'"):
        survey("user", "nobody-at-all", door="command")
    with pytest.raises(ErasureRefused, match="nothing to erase"):
        erase("user", make_user().username, "r", door="command")


def test_a_legal_hold_refuses_erasure() -> None:
    user, other = make_user(), make_user()
    made = make_call(user)
    make_call(other)
    hold("principal", user.username)
    with pytest.raises(Held, match="case 12"):
        erase("user", user.username, "r", door="command")
    assert payload_of(made).arguments
    assert not Record.objects.filter(code="subject_erased", object_id=f"user:{user.pk}").exists()
    erase("user", other.username, "r", door="command")


@pytest.mark.parametrize(
    ("scope", "of"),
    [("principal", "name"), ("principal", "on_behalf_of"), ("tool", "tool")],
    ids=["its former name", "for whom it acted", "a tool it called under its former name"],
)
def test_another_name_for_the_account_does_not_escape_a_hold(scope: str, of: str) -> None:
    user = make_user()
    made = make_call(user, on_behalf_of="starter", tool="pay")
    hold(scope, {"name": user.username, "on_behalf_of": "starter", "tool": "pay"}[of])
    User.objects.filter(pk=user.pk).update(username="renamed")
    with pytest.raises(Held, match="case 12"):
        erase("user", "renamed", "r", door="command")
    assert payload_of(made).arguments


def test_of_others_than_users_every_hold_of_the_time_refuses() -> None:
    make_call(make_user(), subject=customer("held"))
    hold("tool", "some_tool")
    with pytest.raises(Held):
        erase("customer", "held", "r", door="command")


# --- The doors --------------------------------------------------------------------------------------------------------


def test_the_command_says_how_much_there_is_and_erases_only_when_told() -> None:
    user = make_user()
    made = make_call(user)
    out = io.StringIO()
    call_command("erase_subject", user.username, stdout=out)
    assert "1 keys of 1 months" in out.getvalue()
    assert "Nothing was erased" in out.getvalue()
    assert payload_of(made).arguments
    with pytest.raises(CommandError, match="Say why"):
        call_command("erase_subject", user.username, "--yes", stdout=out)
    call_command("erase_subject", user.username, "--yes", "--reason", "request", stdout=out)
    with pytest.raises(KeyDestroyed):
        payload_of(made)
    with pytest.raises(CommandError, match="no user"):
        call_command("erase_subject", "nobody-at-all", stdout=out)


PAGE, ERASE = (f"admin:audit_datakey_{name}" for name in ("changelist", "erase"))


def test_the_page_surveys_asks_again_and_erases() -> None:
    user, client = make_user(), client_of("erase_subject")
    made = make_call(user)
    asked = {"kind": "user", "value": user.username}
    page = html.unescape(client.post(reverse(ERASE), asked).content.decode())
    assert "confirm" in page
    assert payload_of(made).arguments
    wrong = client.post(reverse(ERASE), {**asked, "reason": "r", "again": "somebody else"})
    assert wrong.status_code == 400
    assert payload_of(made).arguments
    assert client.post(reverse(ERASE), {**asked, "reason": "r", "again": user.username}).status_code == 302
    with pytest.raises(KeyDestroyed):
        payload_of(made)
    hold()
    held = make_call(user)
    answer = client.post(reverse(ERASE), {**asked, "reason": "r", "again": user.username})
    assert "Held by" in html.unescape(answer.content.decode())
    assert payload_of(held).arguments


def test_erasing_needs_its_own_permission() -> None:
    asked = {"kind": "user", "value": make_user().username, "reason": "r", "again": "x"}
    for permission, status in (("view_record", 403), ("read_arguments", 403)):
        client = client_of(permission)
        assert client.post(reverse(ERASE), asked).status_code == status
        assert "Erase a person" not in client.get(reverse(PAGE)).content.decode()
    assert client_of("view_user").get(reverse(PAGE)).status_code == 403


def test_the_page_of_an_erased_record_says_so() -> None:
    user = make_user()
    made = make_call(user)
    erase("user", user.username, "r", door="command")
    page = client_of("view_record", "read_arguments").get(reverse("admin:audit_record_change", args=(made.pk,)))
    assert "was erased on" in page.content.decode()
    assert "Show what is kept" not in page.content.decode()


def rest(*permissions: str) -> Client:
    user = make_user()
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    _, raw = tokens.issue(user, name="t", scopes=["read", "write"])
    return Client(headers={"Authorization": f"Bearer {raw}"})


def test_rest_surveys_and_erases() -> None:
    user, client = make_user(), rest("erase_subject")
    made = make_call(user)
    where, asked = "/api/v1/audit/erasures/", {"value": user.username, "reason": "request 9"}
    answer = client.post(where, asked, content_type="application/json")
    assert (answer.status_code, answer.json()["keys"], answer.json()["erased"]) == (200, 1, False)
    answer = client.post(where, {**asked, "confirm": True}, content_type="application/json")
    assert (answer.status_code, answer.json()["erased"]) == (201, True)
    with pytest.raises(KeyDestroyed):
        payload_of(made)
    again = client.post(where, {**asked, "confirm": True}, content_type="application/json")
    assert (again.status_code, again.json()["code"]) == (400, "erasure_refused")
    make_call(user)
    hold()
    refused = client.post(where, {**asked, "confirm": True}, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (409, "held")
    unknown = client.post(where, {"value": "nobody-at-all"}, content_type="application/json")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_subject")
    assert rest("view_record").post(where, asked, content_type="application/json").status_code == 403


def test_a_key_is_wrapped_anew_and_a_destroyed_one_stays_as_it_is(settings: Any) -> None:
    from keyring.rotation import encrypted_fields, label

    assert "audit.DataKey.wrapped" in [label(each) for each in encrypted_fields()]
    assert DataKey._meta.get_field("wrapped").null
