"""What witnesses may hand in, and what is made of it."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from access.models import Role, Scope, ServiceAccount, User
from access.tokens import issue
from audit import verify
from audit.models import Record
from audit.outside import witnesses
from audit.outside.contradictions import unsettled
from audit.outside.cosignatures import SILENT_AFTER, standings
from audit.outside.models import Contradiction, Cosignature
from audit.outside.tests.heads import codes, cosigned, signers, store
from audit.tests.logs import Log
from audit.witness import Signer, main

pytestmark = pytest.mark.django_db
HEADS = "/api/v1/audit/heads"
CONTRADICTIONS = "/api/v1/audit/contradictions/"


def client(*codenames: str) -> APIClient:
    """A service account with a token, whose role has these permissions of the ledger."""
    role = Role.objects.create(name="witness")
    role.permissions.set(Permission.objects.filter(content_type__app_label="audit", codename__in=codenames))
    account = ServiceAccount.objects.create(username="witness", is_service=True)
    account.groups.add(role)
    _, secret = issue(account, name="t", scopes=[Scope.READ, Scope.WRITE])
    found = APIClient()
    found.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    return found


@pytest.fixture
def log() -> Log:
    log = Log()
    log.add("a")
    store(log)
    return log


def hand_in(api: APIClient, log: Log, number: int, signer: Signer, at: float | None = None) -> tuple[int, str]:
    line = str(signer.cosign(log.heads[number][0].text, int(at or time.time())))
    answer = api.post(f"{HEADS}/{number}/cosignatures/", {"line": line})
    return answer.status_code, answer.json().get("detail", "")


def test_a_witness_of_the_settings_may_sign_a_head_once(log, settings):
    (signer,) = signers(settings, "w1")
    api = client("add_cosignature")
    assert [hand_in(api, log, 1, signer)[0] for _ in range(2)] == [201, 200]
    kept = Cosignature.objects.get()
    assert (kept.head, kept.witness) == (1, "w1")
    assert verify.check_note(verify.parse_note(f"{log.heads[1][1]}{kept.line}\n"), [signer.public]) == [
        str(signer.public)
    ]
    assert api.post(f"{HEADS}/2/cosignatures/", {"line": kept.line}).status_code == 404
    assert api.post(f"{HEADS}/{2**70}/cosignatures/", {"line": kept.line}).status_code == 404


def test_nobody_else_may(log, settings):
    (signer,) = signers(settings, "w1")
    api = client("add_cosignature")
    stranger = Signer.new("w2")
    assert "(" in hand_in(api, log, 1, stranger)[1]
    same_name = Signer.new("w1")
    for wrong, sentence in (
        (stranger, "is none of the witnesses of LEDGER_WITNESSES"),
        (same_name, "is none of the witnesses of LEDGER_WITNESSES"),
    ):
        status, detail = hand_in(api, log, 1, wrong)
        assert (status, sentence in detail) == (400, True)
    of_another_head = str(signer.cosign(log.heads[0][0].text, int(time.time())))
    answer = api.post(f"{HEADS}/1/cosignatures/", {"line": of_another_head})
    assert (answer.status_code, answer.json()["code"]) == (400, "not_cosigned")
    assert answer.json()["detail"] == "This is not the signature of w1 on this head."
    assert "dated in the future" in hand_in(api, log, 1, signer, at=time.time() + 3600)[1]
    for line in ("", "x", "— w1 AAAA", "— w1 " + "A" * 200, of_another_head[:-20]):
        assert api.post(f"{HEADS}/1/cosignatures/", {"line": line}).status_code == 400
    assert not Cosignature.objects.exists()


def test_it_takes_the_permission_and_nothing_more(log, settings):
    (signer,) = signers(settings, "w1")
    assert hand_in(client("view_record", "view_head", "view_contradiction"), log, 1, signer)[0] == 403


def test_the_permission_reads_no_records(log):
    api = client("add_cosignature", "view_head")
    assert api.get("/api/v1/audit/records/").status_code == 403
    assert api.get(CONTRADICTIONS).status_code == 403
    assert api.get("/api/v1/audit/anchors/").status_code == 403


def restored(settings) -> tuple[Log, Signer, APIClient]:
    """A log of which a witness has head 3, and the database an older state, which went on."""
    (signer,) = signers(settings, "w1")
    log = Log()
    log.add("a")
    backup = log.copy()
    log.add("b")
    log.add("c")
    store(backup)
    return log, signer, client("add_cosignature", "view_contradiction")


def test_what_a_witness_holds_against_the_ledger_is_kept_and_recorded_once(settings):
    log, signer, api = restored(settings)
    answer = api.post(CONTRADICTIONS, {"code": "head_behind", "note": cosigned(log, 3, signer)})
    assert answer.status_code == 201
    assert (answer.json()["source"], answer.json()["head"]) == ("witness w1", 3)
    again = api.post(CONTRADICTIONS, {"code": "head_behind", "note": cosigned(log, 3, signer, 1_790_000_007)})
    assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])
    assert codes() == [("witness w1", "head_behind", 3)]
    assert [row[:3] for row in unsettled()] == codes()
    record = Record.objects.get(code="head_behind")
    assert (record.kind, record.actor) == ("system", "witness")
    assert api.get(CONTRADICTIONS).json()["results"][0]["head"] == 3


def test_a_later_break_settles_it_and_an_earlier_one_does_not(settings):
    log, signer, api = restored(settings)
    backup = log.copy()
    del backup.heads[2:], backup.leaves[1:]
    backup.at = log.heads[1][0].sealed_at
    backup.break_off("of old")
    store(backup, 2)
    api.post(CONTRADICTIONS, {"code": "head_behind", "note": cosigned(log, 3, signer)})
    assert len(unsettled()) == 1
    assert "manage.py ledger accept-restore" in page_of_the_contradiction()
    backup.at = log.at
    backup.break_off("the backup of noon was restored")
    store(backup, 3)
    assert unsettled() == []
    assert "a restore was accepted afterwards" in page_of_the_contradiction()


def page_of_the_contradiction() -> str:
    """As the admin shows it."""
    auditor, _ = User.objects.get_or_create(username="root", defaults={"is_superuser": True, "is_staff": True})
    browser = Client()
    browser.force_login(auditor)
    address = reverse("admin:audit_contradiction_change", args=(Contradiction.objects.get().pk,))
    return browser.get(address).content.decode()


def test_what_is_not_signed_by_a_witness_or_not_denied_is_refused(settings):
    log, signer, api = restored(settings)
    for note in (log.heads[3][1], cosigned(log, 3, Signer.new("w1")), "no note", cosigned(log, 3, signer) + "x"):
        answer = api.post(CONTRADICTIONS, {"code": "head_behind", "note": note})
        assert (answer.status_code, answer.json()["code"]) == (400, "not_cosigned"), note
    denied = api.post(CONTRADICTIONS, {"code": "head_behind", "note": cosigned(log, 1, signer)})
    assert (denied.status_code, denied.json()["code"]) == (409, "not_contradicted")
    assert api.post(CONTRADICTIONS, {"code": "else", "note": cosigned(log, 3, signer)}).status_code == 400
    assert codes() == []


@pytest.mark.parametrize("statement", ["DELETE FROM audit_contradiction", "UPDATE audit_contradiction SET head = 0"])
def test_nobody_can_take_it_back(settings, statement):
    log, signer, api = restored(settings)
    api.post(CONTRADICTIONS, {"code": "head_behind", "note": cosigned(log, 3, signer)})
    with (
        pytest.raises(DatabaseError, match="permission denied for table audit_contradiction"),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)


def test_a_witness_that_fell_silent_is_named(settings, log):
    one, two = signers(settings, "w1", "w2")
    api = client("add_cosignature")
    hand_in(api, log, 1, one)
    quick, slow = standings()
    assert (quick.name, quick.head, quick.behind, quick.silent) == ("w1", 1, 0, False)
    assert (slow.name, slow.head, slow.behind) == ("w2", None, 2)
    assert slow.silent, "the log began long ago, and it never signed"
    log.add("b")
    store(log, 2)
    (quick, _) = standings()
    assert (quick.behind, quick.silent) == (1, False), "it has five minutes"
    assert timedelta(minutes=5) == SILENT_AFTER
    assert two


def test_settings_with_a_wrong_witness_are_refused():
    key = verify.Key("log", verify.ED25519, bytes(range(32)))
    for words, sentence in (
        (["nonsense"], "LEDGER_WITNESSES: Not"),
        ([str(key)], "is the key of a log, not of a witness"),
        ([str(Signer.new("w").public), str(Signer.new("w").public)], "names w twice"),
        (["/nowhere/key"], "names the file /nowhere/key, which cannot be read"),
    ):
        with pytest.raises(ImproperlyConfigured, match=sentence):
            witnesses.read(words)


def test_a_witness_may_be_named_by_the_file_that_it_wrote_and_once_more(tmp_path):
    public = tmp_path / "key"
    assert main(["key", "--state", str(tmp_path / "w"), "--name", "w", "--public", str(public)]) == 0
    assert public.stat().st_mode & 0o777 == 0o644
    (key,) = witnesses.read([str(public), public.read_text().strip()])
    assert key.name == "w"
