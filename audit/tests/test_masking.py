"""Known secrets do not get into what is written in the clear; everything else stays as it is."""

from __future__ import annotations

import json
import time
import uuid
from urllib.parse import quote

import pytest
from django.apps import apps

from audit.ledger import Entry, record
from audit.masked import MaskedTextField
from audit.masking import MASK, Known, Masker, known
from audit.models import Record
from audit.opening import payload_of
from audit.payload import SALT_BYTES
from tools.models import DataSource, Synchronisation

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (f"token mcps_{'a' * 43} used", f"token {MASK} used"),
        (f"Authorization: Bearer {'x' * 40}", f"Authorization: Bearer {MASK}"),
        (f"jwt={JWT};", f"jwt={MASK};"),
        (f"key: {PEM} end", f"key: {MASK} end"),
        (json.dumps(f"key: {PEM}"), f'"key: {MASK}"'),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcC", MASK),
        ("postgresql://bob:hunter2@db/x", f"postgresql://{MASK}@db/x"),
        ("https://token@example.com/", f"https://{MASK}@example.com/"),
        ("id AKIAIOSFODNN7EXAMPLE.", f"id {MASK}."),
        (f'aws_secret_access_key = "{"k" * 40}"', f'aws_secret_access_key = "{MASK}"'),
    ],
)
def test_what_has_the_shape_of_a_secret_is_masked(said: str, left: str) -> None:
    assert Masker().text(said) == left


@pytest.mark.parametrize(
    "said",
    [
        "mcps_1234567",  # the beginning of a token, which records name
        "https://example.com/a@b",
        "see https://example.com, or write to ada@example.com",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "the bearer of this",
        "eyJ is how they begin",
        "AKIA is a prefix",
    ],
)
def test_what_only_looks_a_little_like_one_is_left_alone(said: str) -> None:
    assert Masker().text(said) is said


@pytest.mark.parametrize("secret", ["pa$$word", 'quo"ted\\slash', "grüße-geheim", "with space/slash"])
def test_a_known_secret_is_found_in_text_in_json_and_in_addresses(secret: str) -> None:
    masker = Masker([secret])
    for form in (secret, json.dumps({"a": secret}), json.dumps(secret, ensure_ascii=False), quote(secret, safe="")):
        masked = masker.text(f"before {form} after")
        assert MASK in masked
        assert secret not in masked
    assert masker.raw(f"x{secret}".encode()) == f"x{MASK}".encode()


def test_the_longer_of_two_secrets_is_masked_first() -> None:
    assert Masker(["secret-a", "secret-a-and-more"]).text("secret-a-and-more") == MASK


def test_short_values_are_no_secrets() -> None:
    assert Masker(["abc", ""]).text("abcdef") == "abcdef"


def test_bytes_that_are_no_text_survive() -> None:
    raw = b"\xff\x00 secret-value"
    assert Masker(["secret-value"]).raw(raw) == b"\xff\x00 [secret]"
    untouched = b"\xff\x00"
    assert Masker(["secret-value"]).raw(untouched) is untouched


@pytest.mark.parametrize("said", ["://" * 50_000, "eyJ" * 50_000, "-----BEGIN " * 20_000, "mcps_" * 40_000])
def test_long_hostile_texts_take_no_long_time(said: str) -> None:
    started = time.perf_counter()
    Masker().text(said)
    assert time.perf_counter() - started < 1


@pytest.mark.django_db
def test_a_record_masks_the_secrets_of_data_sources_at_once() -> None:
    secret = f"canary-{uuid.uuid4().hex}"
    DataSource.objects.create(name=f"s-{secret[-6:]}", kind="mcp", secrets={"token": secret, "nested": ["x", secret]})
    made = Entry(
        kind="config",
        code="test",
        object_type="tools.DataSource",
        detail=json.dumps({"message": f"refused {secret}"}),
        client=f"agent {secret}",
        shown=json.dumps({"a": secret}),
        arguments=b"{}",
        result=f"it was {secret}".encode(),
        keeps_result=1000,
    )
    found = Record.objects.get(rid=record(made))
    assert found.detail == '{"message": "refused [secret]"}'
    assert found.shown == '{"a": "[secret]"}'
    assert found.client == "agent [secret]"
    kept = payload_of(found)
    assert kept.result is None
    assert kept.some_result == b"it was [secret]"
    assert len(kept.salt) == SALT_BYTES


@pytest.mark.django_db
def test_what_is_known_changes_with_the_sources() -> None:
    mine = Known()
    first = mine.refresh()
    assert mine.current() is first
    source = DataSource.objects.create(name=f"s-{uuid.uuid4().hex[:6]}", kind="mcp", secrets={"token": "canary-one"})
    assert mine.current("tools.DataSource").text("canary-one") == MASK
    source.secrets = {"token": "canary-two"}
    source.save()
    assert mine.refresh().text("canary-one canary-two") == f"canary-one {MASK}"
    assert known() is known()


SAID_BY_OTHERS = {"error", "problem", "message", "check_message", "test_message"}


def test_every_column_for_what_others_say_is_masked() -> None:
    columns = [
        each for model in apps.get_models() for each in model._meta.concrete_fields if each.name in SAID_BY_OTHERS
    ]
    ours = [
        each for each in columns if each.model.__module__.partition(".")[0] in ("audit", "tools", "agents", "gateway")
    ]
    assert len(ours) >= 9
    assert [str(each) for each in ours if not isinstance(each, MaskedTextField)] == []


@pytest.mark.django_db
def test_what_an_upstream_repeats_of_a_secret_is_not_kept_and_not_cut_in_the_middle() -> None:
    source = DataSource.objects.create(name="desk", kind="mcp", secrets={"bearer_token": "canary-hunter2"})
    said = "refused canary-hunter2"
    for change in (
        lambda: Synchronisation.objects.create(source=source, error=said),
        lambda: Synchronisation.objects.update(error=said),
    ):
        change()
        assert Synchronisation.objects.get().error == f"refused {MASK}"
    field = MaskedTextField(longest=20)
    assert field.get_prep_value(f"twelve chars {'canary-hunter2'}") == f"twelve chars {MASK}"[:20]
