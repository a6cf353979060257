"""The evidence in the admin: how far sealing is, and the heads, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.urls import reverse

from access.models import User
from audit.sealing import evidence
from audit.sealing.keys import key_of
from audit.sealing.tests.conftest import SCHEMA, Ledger, new_signer
from audit.verify import parse_head, parse_note

LIST = "admin:audit_head_changelist"


@pytest.fixture
def auditor(committed_db: None, client: Client) -> Client:
    user = User.objects.create_user("auditor", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_head"))
    client.force_login(user)
    return client


@pytest.fixture
def seen(committed_db: None, ledger: Ledger) -> Iterator[Ledger]:
    """The ledger of the test is what the pages see."""
    ledger.connection.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC".encode())
    ledger.connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO PUBLIC".encode())
    with connection.cursor() as cursor:
        cursor.execute(f"SET search_path TO {SCHEMA}, public")
        yield ledger
        cursor.execute("RESET search_path")


def shown(client: Client, address: str) -> str:
    response: Any = client.get(address)
    assert response.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def test_before_the_first_head_it_says_what_to_do(auditor: Client, seen: Ledger) -> None:
    page = shown(auditor, reverse(LIST))
    assert "Nothing is sealed yet Behind" in page
    assert "manage.py worker sealer" in page
    assert "No witness signs" in page


def test_it_shows_how_far_sealing_is_and_the_key(auditor: Client, seen: Ledger) -> None:
    seen.write(3)
    seen.sealer().step()
    head = parse_head(parse_note(seen.notes()[0]).text)
    page = shown(auditor, reverse(LIST))
    assert "3 records are sealed In time" in page
    assert str(key_of(head.origin, seen.signers[0])) in page
    assert evidence.root_of(evidence.page(None)[0][0].head) in page


def test_what_was_refused_stands_at_the_top(auditor: Client, seen: Ledger) -> None:
    seen.write(2)
    seen.connection.execute("UPDATE audit_record SET actor = 'mallory' WHERE id = 2")
    seen.sealer().step()
    assert "1 refused" in shown(auditor, reverse(LIST))


def test_witnesses_and_places_outside_are_named(auditor: Client, seen: Ledger) -> None:
    seen.sealer().step()
    seen.connection.execute("INSERT INTO audit_cosignature VALUES (0, 'witness.example.org', 'x')")
    seen.connection.execute("INSERT INTO audit_anchor (head, sink, receipt) VALUES (0, 's3://bucket', 'version 7')")
    page = shown(auditor, reverse(LIST))
    assert "witness.example.org Witness; signed head 0" in page
    assert "s3://bucket Holds head 0" in page
    head = shown(auditor, reverse("admin:audit_head_change", args=(0,)))
    assert "witness.example.org x" in head
    assert "s3://bucket version 7" in head


def test_heads_go_by_pages_without_a_gap(auditor: Client, seen: Ledger) -> None:
    sealer = seen.sealer()
    for _ in range(2 * evidence.PER_PAGE + 1):
        seen.clock.now += 60
        sealer.step()
    numbers, address = [], reverse(LIST)
    while address:
        body = auditor.get(address).content.decode()
        numbers += [int(number) for number in re.findall(r"/admin/audit/head/(\d+)/change/", body)]
        older = re.search(r'href="(\?before=\d+)"', body)
        address = reverse(LIST) + older[1] if older else ""
    assert numbers == list(range(2 * evidence.PER_PAGE, -1, -1))


@pytest.mark.parametrize("before", ["x", "-1", "9" * 30, "٣", "0"])
def test_a_place_that_is_none_is_no_error(auditor: Client, seen: Ledger, before: str) -> None:
    seen.sealer().step()
    assert auditor.get(reverse(LIST), {"before": before}).status_code == 200


def test_special_heads_are_marked(auditor: Client, seen: Ledger) -> None:
    seen.sealer().step()
    seen.signers.insert(0, new_signer("s2"))
    sealer = seen.sealer(opened=False)
    sealer.open()
    sealer.step()
    sealer.accept_restore("a fire", None)
    page = shown(auditor, reverse(LIST))
    assert "New key" in page
    assert "Restore accepted" in page
    head = shown(auditor, reverse("admin:audit_head_change", args=(2,)))
    assert "break YSBmaXJl" in head


def test_a_head_that_is_not_there_is_not_found(auditor: Client, seen: Ledger) -> None:
    assert auditor.get(reverse("admin:audit_head_change", args=(7,))).status_code == 404


def test_only_those_who_may_see_heads_see_them(client: Client, seen: Ledger) -> None:
    seen.sealer().step()
    client.force_login(User.objects.create_user("stranger", password="x", is_staff=True))
    assert client.get(reverse(LIST)).status_code == 403
    assert client.get(reverse("admin:audit_head_change", args=(0,))).status_code in (302, 403, 404)
    assert reverse(LIST) not in client.get(reverse("admin:index")).content.decode()
