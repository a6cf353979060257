"""What is changed is recorded with before and after, secrets only as set or unset, and nothing without its record."""

from __future__ import annotations

import json

import pytest
from django.db import DatabaseError, transaction

from access.models import Grant, Role, User
from audit import changes
from audit.changes import also_deleted, delete_recorded, differences, record_change, snapshot, stored
from audit.models import Record
from tools.models import DataSource, Tool, Toolset

pytestmark = pytest.mark.django_db


def make_source(**values) -> DataSource:
    return DataSource.objects.create(**{"name": "desk", "kind": "sql", "secrets": {"password": "hunter2"}, **values})


def change(obj, before, **values):
    return record_change(action="update", obj=obj, before=before, after=stored(obj), door="admin", **values)


def test_a_change_is_recorded_with_before_and_after():
    source = make_source()
    before = stored(source)
    source.description = "The desk's database"
    source.save()
    record = Record.objects.get(rid=change(source, before))
    assert (record.kind, record.code, record.object_type) == ("config", "update", "tools.DataSource")
    assert record.object_id == str(source.pk)
    assert json.loads(record.detail)["changes"] == {"description": ["", "The desk's database"]}


def test_saving_without_a_difference_records_nothing():
    source = make_source()
    before = stored(source)
    source.save()
    assert change(source, before) is None
    assert not Record.objects.filter(object_id=str(source.pk)).exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"password": "hunter2"}, {"password": "hunter3"}, ["set", "changed"]),
        ({"password": "hunter2"}, None, ["set", "unset"]),
        (None, {"password": "hunter3"}, ["unset", "set"]),
    ],
)
def test_a_secret_is_only_said_to_be_set_unset_or_changed(old, new, told):
    source = make_source(secrets=old)
    before = stored(source)
    source.secrets = new
    source.save()
    record = Record.objects.get(rid=change(source, before))
    assert json.loads(record.detail)["changes"] == {"secrets": told}
    assert "hunter" not in record.detail


def test_encrypting_the_same_secret_again_is_no_change():
    source = make_source()
    before = stored(source)
    source.secrets = {"password": "hunter2"}
    source.save()
    assert change(source, before) is None


def test_a_password_hash_never_enters_a_record():
    user = User.objects.create_user("dora", password="a-good-password")
    found = snapshot(user)
    assert str(found["password"]) == "set"
    assert "scrypt" not in json.dumps(differences({}, found))


def test_relations_are_recorded_by_name():
    toolset = Toolset.objects.create(name="support")
    before = stored(toolset)
    toolset.tools.add(Tool.objects.create(source=make_source(), name="find_customer"))
    record = Record.objects.get(rid=change(toolset, before))
    assert json.loads(record.detail)["changes"] == {"tools": [[], ["find_customer"]]}


def test_a_record_links_to_what_its_object_hangs_on():
    role = Role.objects.create(name="support")
    grant = Grant.objects.create(role=role, tag="support")
    rid = record_change(action="create", obj=grant, before={}, after=stored(grant), door="rest")
    assert json.loads(Record.objects.get(rid=rid).detail)["links"] == [f"access.Role:{role.pk}"]


def test_deleting_says_what_went_along():
    source = make_source()
    tool = Tool.objects.create(source=source, name="find_customer")
    role = Role.objects.create(name="support")
    Grant.objects.create(role=role, tool=tool)
    assert also_deleted([source]) == {"access.Grant": ["support → find_customer"], "tools.Tool": ["find_customer"]}
    pk = str(source.pk)
    delete_recorded(source, door="admin")
    record = Record.objects.get(object_id=pk)
    assert record.code == "delete"
    assert json.loads(record.detail)["also_deleted"]["tools.Tool"] == ["find_customer"]
    assert not DataSource.objects.exists()


def test_what_cannot_be_recorded_does_not_happen(monkeypatch):
    def refuse(*args, **kwargs):
        raise DatabaseError("the ledger refuses")

    source = make_source()
    monkeypatch.setattr(changes, "record", refuse)
    with pytest.raises(DatabaseError), transaction.atomic():
        delete_recorded(source, door="admin")
    assert DataSource.objects.filter(pk=source.pk).exists()


def test_a_rolled_back_change_leaves_no_record():
    source = make_source()
    with transaction.atomic():
        delete_recorded(source, door="admin")
        transaction.set_rollback(True)
    assert not Record.objects.filter(object_id=str(source.pk)).exists()


def test_a_huge_value_is_cut_and_the_detail_stays_json():
    source = make_source()
    before = stored(source)
    source.description = "x" * 300_000
    source.save()
    said = json.loads(Record.objects.get(rid=change(source, before)).detail)["changes"]["description"][1]
    assert said.endswith("… (300000 characters)")
    assert len(said) < 5_000
