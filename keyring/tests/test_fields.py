from __future__ import annotations

import copy
import uuid
from typing import Any

import pytest
from django.core import serializers
from django.core.exceptions import FieldError
from django.db import connection, models, transaction
from django.test.utils import isolate_apps

from keyring.fields import EncryptedJSONField
from keyring.keys import DecryptionError
from tools.models import DataSource

pytestmark = pytest.mark.django_db

SECRET = {"password": "hunter2-canary", "port": 1, "list": [None, True, 1.5, "ü"]}


def make_source(secrets: object = SECRET, **values: object) -> DataSource:
    return DataSource.objects.create(
        **{"name": f"s-{uuid.uuid4().hex[:8]}", "kind": "mcp", "secrets": secrets, **values}
    )


def reread(source: DataSource) -> DataSource:
    return DataSource.objects.get(pk=source.pk)


def raw(source: DataSource) -> bytes | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secrets FROM tools_datasource WHERE id = %s", [source.pk])
        return cursor.fetchone()[0]


def execute(sql: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


@pytest.mark.parametrize("value", [SECRET, None, {}, [], "text", "aGVsbG8=", 0, False, 1234, 2**53])
def test_every_json_value_comes_back(value):
    assert reread(make_source(value)).secrets == value


def test_the_database_holds_nothing_readable():
    assert b"hunter2" not in bytes(raw(make_source()))


def test_nothing_is_stored_as_null():
    assert raw(make_source(None)) is None
    assert DataSource.objects.filter(secrets__isnull=True).exists()


def test_a_change_inside_the_value_is_saved():
    source = reread(make_source())
    source.secrets["password"] = "new"
    source.save()
    assert reread(source).secrets["password"] == "new"


def test_saving_without_looking_does_not_encrypt_anew():
    source = make_source()
    before = raw(source)
    reread(source).save()
    assert raw(source) == before


def test_swapped_rows_do_not_decrypt():
    a, b = make_source({"a": 1}), make_source({"b": 1})
    execute(
        "UPDATE tools_datasource t SET secrets ="
        " (SELECT secrets FROM tools_datasource o WHERE o.id <> t.id AND o.id = ANY(%s)) WHERE id = ANY(%s)",
        [a.pk, b.pk],
        [a.pk, b.pk],
    )
    for source in (a, b):
        with pytest.raises(DecryptionError, match="belongs to another row"):
            _ = reread(source).secrets


def test_a_ciphertext_of_another_column_does_not_decrypt():
    source = make_source()
    field = DataSource._meta.get_field("secrets")
    sealed = field.sealed({"a": 1}, source)
    for name in ("table", "column"):
        other = sealed
        foreign = EncryptedJSONField()
        foreign.model, foreign.column = DataSource, "secrets" if name == "table" else "other"
        context = foreign.context(source) if name == "column" else b"other|" + field.context(source).partition(b"|")[2]
        other.context = context
        with pytest.raises(DecryptionError):
            field.opened(other, source)


def test_a_tampered_value_does_not_decrypt():
    source = make_source()
    execute(
        "UPDATE tools_datasource SET secrets = set_byte(secrets, 20, get_byte(secrets, 20) # 1) WHERE id = %s",
        source.pk,
    )
    found = reread(source)
    with pytest.raises(DecryptionError):
        _ = found.secrets
    found.description = "other things can still be saved"
    found.save()


def test_the_primary_key_may_be_written_in_any_form():
    key = uuid.uuid4()
    DataSource.objects.create(id=key.hex.upper(), name="odd-key", kind="mcp", secrets=SECRET)
    assert DataSource.objects.get(pk=key).secrets == SECRET


def test_a_copy_under_a_new_key_keeps_the_secret_whether_it_was_read_or_not():
    source = make_source()
    for number, touch in enumerate((False, True)):
        found = reread(source)
        if touch:
            assert found.secrets
        found.pk, found.name, found._state.adding = uuid.uuid4(), f"copy-{number}", True
        found.save()
        assert reread(found).secrets == SECRET
        assert found.secrets == SECRET
    assert reread(source).secrets == SECRET


def test_copies_in_memory_keep_the_secret():
    assert copy.deepcopy(reread(make_source())).secrets == SECRET
    assert copy.copy(reread(make_source())).secrets == SECRET


def test_values_shows_nothing():
    source = make_source()
    for rows in (DataSource.objects.values(), DataSource.objects.values_list("secrets")):
        assert "hunter2" not in repr(list(rows))
        assert "<encrypted>" in repr(list(rows))
    value = DataSource.objects.values_list("secrets", flat=True).get(pk=source.pk)
    assert f"{value}" == str(value) == repr(value) == "<encrypted>"


@pytest.mark.parametrize("value", [SECRET, "text", b"bytes", 1])
def test_update_refuses_what_is_not_encrypted(value):
    source = make_source()
    said = r"secrets is encrypted: it cannot be searched or set by update\(\)"
    with pytest.raises(FieldError, match=said), transaction.atomic():
        DataSource.objects.filter(pk=source.pk).update(secrets=value)
    assert reread(source).secrets == SECRET


def test_update_refuses_the_ciphertext_of_another_row():
    a, b = make_source(), make_source({"b": 1})
    taken = DataSource.objects.values_list("secrets", flat=True).get(pk=a.pk)
    with pytest.raises(FieldError), transaction.atomic():
        DataSource.objects.filter(pk=b.pk).update(secrets=taken)


def test_update_may_remove_it():
    source = make_source()
    DataSource.objects.filter(pk=source.pk).update(secrets=None)
    assert reread(source).secrets is None


@pytest.mark.parametrize("lookup", ["secrets", "secrets__contains", "secrets__in", "secrets__gt"])
def test_it_cannot_be_searched(lookup):
    with pytest.raises(FieldError):
        DataSource.objects.filter(**{lookup: [SECRET] if lookup.endswith("in") else "hunter2"}).exists()


def test_bulk_create_encrypts_and_bulk_update_refuses():
    sources = [DataSource(name=f"bulk-{n}", kind="mcp", secrets={"n": n}) for n in range(3)]
    DataSource.objects.bulk_create(sources)
    assert [reread(source).secrets["n"] for source in sources] == [0, 1, 2]
    sources[0].secrets = {"n": 9}
    with pytest.raises(FieldError):
        DataSource.objects.bulk_update(sources, ["secrets"])


def test_a_deferred_value_is_fetched_at_first_use_and_not_overwritten():
    source = make_source()
    found = DataSource.objects.defer("secrets").get(pk=source.pk)
    assert "secrets" in found.get_deferred_fields()
    found.save()
    assert found.secrets == SECRET
    assert DataSource.objects.only("name").get(pk=source.pk).secrets == SECRET


def test_refreshing_takes_what_the_database_has():
    source = make_source()
    other = reread(source)
    other.secrets = {"new": 1}
    other.save()
    source.refresh_from_db()
    assert source.secrets == {"new": 1}
    source.refresh_from_db(fields=["secrets"])
    assert source.secrets == {"new": 1}


def test_validation_leaves_the_value_alone():
    for value in ("aGVsbG8=", SECRET, 7):
        source = make_source(value)
        source.full_clean()
        source.save()
        assert reread(source).secrets == value


@pytest.mark.parametrize("value", [SECRET, 1234567, "hunter2-canary", None])
@pytest.mark.parametrize("form", ["json", "python", "xml", "yaml"])
def test_a_fixture_holds_no_secret(value, form):
    text = str(serializers.serialize(form, [make_source(value)]))
    assert "hunter2" not in text
    assert "1234567" not in text
    assert "secrets" not in text


def test_serialisers_that_ask_the_field_see_no_value():
    source, field = make_source(1234567), DataSource._meta.get_field("secrets")
    assert repr(field.value_from_object(source)) == "<encrypted>"
    assert field.value_to_string(source) == ""
    assert field.value_from_object(make_source(None)) is None
    assert not field.editable


@isolate_apps("tools")
def test_a_row_needs_its_key_before_it_can_be_saved():
    class Numbered(models.Model):
        secret = EncryptedJSONField(null=True)

        class Meta:
            app_label = "tools"

        def __str__(self) -> str:
            return "numbered"

    with pytest.raises(FieldError, match="give the row its primary key before saving it"):
        Numbered._meta.get_field("secret").pre_save(Numbered(secret={"a": 1}), True)
    assert Numbered._meta.get_field("secret").pre_save(Numbered(secret=None), True) is None


def test_the_field_is_written_to_migrations_without_what_is_always_so():
    *_, kwargs = EncryptedJSONField(null=True).deconstruct()
    assert kwargs == {"null": True}
