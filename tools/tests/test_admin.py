"""The catalogue's forms follow from the connectors, show no secret, and record what they change."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from access.models import User
from audit.models import Record
from tools.models import DataSource, Tool, Toolset

pytestmark = pytest.mark.django_db
ADD_SOURCE = "/admin/tools/datasource/add/"
ADD_TOOL = "/admin/tools/tool/add/"
OPTIONS = {"host": "db.example.com", "port": 5432, "database": "desk", "user": "reader"}


@pytest.fixture
def client(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def source_form(**values):
    options = {"host": "db.example.com", "port": "5432", "database": "desk", "user": "reader", "search_path": "public"}
    more = {
        "tls": "prefer",
        "statement_timeout_seconds": "10",
        "max_rows": "9",
        "max_bytes": "9999",
        "max_connections": "2",
    }
    fields = {f"option_{name}": value for name, value in {**options, **more}.items()}
    return {"name": "desk", "enabled": "on", "timeout_seconds": "30", **fields, **values}


def tool_form(**values):
    spec = {"option_title": "Find", "option_description": "Finds a customer", "option_parameters": "[]"}
    inline = {"versions-TOTAL_FORMS": "0", "versions-INITIAL_FORMS": "0"}
    tool = {"name": "find", "effect": "read", "as_task": "slow", "tags": "support", "enabled": "on"}
    return {**tool, **spec, **inline, **values}


def make_source(**values) -> DataSource:
    return DataSource.objects.create(**{"name": "desk", "kind": "sql", "options": OPTIONS, **values})


def make_staff(*permissions: str) -> Client:
    user = User.objects.create_user("dora", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def change_url(obj) -> str:
    return reverse(f"admin:tools_{obj._meta.model_name}_change", args=(obj.pk,))


def errors_of(response) -> dict[str, list[str]]:
    return response.context["adminform"].form.errors


def test_adding_a_source_begins_with_the_choice_of_its_kind(client):
    page = client.get(ADD_SOURCE).content.decode()
    assert "?kind=sql" in page
    assert "?kind=mcp" in page
    assert "option_host" in client.get(ADD_SOURCE, {"kind": "sql"}).content.decode()
    assert "option_url" in client.get(ADD_SOURCE, {"kind": "mcp"}).content.decode()


def test_a_source_is_made_with_its_secret_encrypted_and_on_record(client):
    answer = client.post(f"{ADD_SOURCE}?kind=sql", source_form(option_password="canary-1234"))
    assert answer.status_code == 302
    source = DataSource.objects.get()
    assert (source.kind, source.options["max_rows"], source.secrets) == ("sql", 9, {"password": "canary-1234"})
    record = Record.objects.get(object_id=str(source.pk))
    assert (record.code, record.actor, record.door) == ("create", "root", "admin")
    assert json.loads(record.detail)["changes"]["secrets"] == [None, "set"]
    assert "canary" not in record.detail


def test_a_stored_secret_is_never_shown_and_an_empty_field_keeps_it(client):
    source = make_source(secrets={"password": "canary-1234"})
    page = client.get(change_url(source)).content.decode()
    assert "canary" not in page
    assert "Leave empty to keep it" in page
    assert client.post(change_url(source), source_form(option_password="")).status_code == 302
    assert DataSource.objects.get().secrets == {"password": "canary-1234"}
    assert client.post(change_url(source), source_form(clear_password="on")).status_code == 302
    assert DataSource.objects.get().secrets is None


def test_a_refused_form_does_not_show_the_secret_again(client):
    answer = client.post(f"{ADD_SOURCE}?kind=sql", source_form(option_password="canary-1234", option_port="99999999"))
    assert answer.status_code == 200
    assert b"canary" not in answer.content


def test_what_the_connector_refuses_is_told_at_the_field(client):
    form = {"name": "office", "enabled": "on", "timeout_seconds": "30", "option_url": "https://a:b@example.com/mcp"}
    answer = client.post(f"{ADD_SOURCE}?kind=mcp", {**form, "option_max_connections": "2"})
    assert list(errors_of(answer)) == ["option_url"]
    assert not DataSource.objects.exists()


def test_who_may_only_look_sees_options_and_no_field(client):
    source = make_source(secrets={"password": "canary-1234"})
    page = make_staff("view_datasource").get(change_url(source)).content.decode()
    assert "db.example.com" in page
    assert "option_password" not in page
    assert "canary" not in page


def test_the_buttons_need_a_post_with_the_csrf_token_and_the_permission(client):
    source = make_source()
    url = reverse("admin:tools_datasource_test_connection", args=(source.pk,))
    assert client.get(url).status_code == 200  # only asks
    assert DataSource.objects.get().checked_at is None
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="root"))
    assert strict.post(url, {"_form_submitted": "1"}).status_code == 403
    assert make_staff("view_datasource", "change_datasource").post(url, {"_form_submitted": "1"}).status_code == 403
    assert DataSource.objects.get().checked_at is None


def test_testing_a_source_remembers_and_records_the_outcome(client):
    source = make_source(options={**OPTIONS, "host": "127.0.0.1"})
    url = reverse("admin:tools_datasource_test_connection", args=(source.pk,))
    answer = client.post(url, {"_form_submitted": "1"})
    assert answer["HX-Redirect"] == change_url(source)
    source.refresh_from_db()
    assert source.check_ok is False
    codes = Record.objects.filter(object_id=str(source.pk)).order_by("id").values_list("kind", "code")
    assert list(codes) == [("system", "check_failed"), ("config", "test")]


def test_a_tool_is_written_by_hand_published_and_recorded(client):
    source = make_source()
    page = client.get(ADD_TOOL).content.decode()
    assert f"?source={source.pk}" in page
    answer = client.post(f"{ADD_TOOL}?source={source.pk}", tool_form(option_statement="SELECT 1 AS one"))
    assert answer.status_code == 302, errors_of(answer)
    tool = Tool.objects.get()
    assert json.loads(tool.current.definition)["description"] == "Finds a customer"
    changes = json.loads(Record.objects.get(object_id=str(tool.pk)).detail)["changes"]
    assert changes["spec"][1]["statement"] == "SELECT 1 AS one"
    assert changes["current"][1]


def test_a_new_statement_is_a_new_version(client):
    source = make_source()
    client.post(f"{ADD_TOOL}?source={source.pk}", tool_form(option_statement="SELECT 1 AS one"))
    tool = Tool.objects.get()
    assert client.post(change_url(tool), tool_form(option_statement="SELECT 2 AS two")).status_code == 302
    assert [version.number for version in tool.versions.all()] == [2, 1]
    page = client.get(change_url(tool)).content.decode()
    assert tool.versions.first().fingerprint in page


@pytest.mark.parametrize("statement", ["DELETE FROM customers", "SELECT 1; SELECT 2", "SELECT :missing"])
def test_a_statement_that_is_refused_saves_nothing(client, statement):
    source = make_source()
    answer = client.post(f"{ADD_TOOL}?source={source.pk}", tool_form(option_statement=statement))
    assert answer.status_code == 200
    assert errors_of(answer)
    assert not Tool.objects.exists()


def test_tools_of_a_source_that_is_synchronised_are_not_written_by_hand(client):
    source = make_source(kind="mcp", options={"url": "https://example.com/mcp"})
    page = client.get(ADD_TOOL, {"source": str(source.pk)}).content.decode()
    assert "come by synchronising" in page


def test_a_tool_can_be_deleted(client):
    source = make_source()
    client.post(f"{ADD_TOOL}?source={source.pk}", tool_form(option_statement="SELECT 1 AS one"))
    url = reverse("admin:tools_tool_delete", args=(Tool.objects.get().pk,))
    assert client.post(url, {"post": "yes"}).status_code == 302
    assert not Tool.objects.exists()


def test_a_toolset_and_its_tools_are_recorded(client):
    tool = Tool.objects.create(source=make_source(), name="find")
    answer = client.post("/admin/tools/toolset/add/", {"name": "support", "tools": [str(tool.pk)]})
    assert answer.status_code == 302
    record = Record.objects.get(object_id=str(Toolset.objects.get().pk))
    assert json.loads(record.detail)["changes"]["tools"] == [None, ["find"]]


def test_the_history_is_read_from_the_ledger(client):
    source = make_source()
    client.post(change_url(source), source_form(description="The desk"))
    url = reverse("admin:tools_datasource_history", args=(source.pk,))
    page = client.get(url).content.decode()
    assert "The desk" in page
    assert reverse("admin:audit_record_change", args=(Record.objects.get(object_id=str(source.pk)).pk,)) in page
    assert make_staff("view_tool").get(url).status_code == 403


def test_what_upstreams_wrote_is_shown_as_text(client):
    attack = "<img src=x onerror=alert(1)>"
    source = make_source(description=attack, check_message=attack, check_ok=False)
    tool = Tool.objects.create(source=source, name="find", spec={"title": attack, "statement": attack})
    for url in ("/admin/tools/datasource/", change_url(source), "/admin/tools/tool/", change_url(tool)):
        assert attack not in client.get(url).content.decode()


@pytest.mark.parametrize("query", ["secrets__startswith=a", "options__password=a", "tools__name=a", "name__regex=a"])
def test_lookups_that_are_no_filters_are_refused(client, query):
    assert client.get(f"/admin/tools/datasource/?{query}").status_code in (302, 400)


def test_an_option_that_is_stored_under_its_public_name_survives_the_form(client):
    source = make_source(options={**OPTIONS, "schema": "desk"})
    assert client.get(change_url(source)).context["adminform"].form["option_search_path"].value() == "desk"


def test_the_forms_say_how_a_parameter_is_written_and_keep_an_address_on_one_line(client):
    page = client.get(f"{ADD_TOOL}?source={make_source().pk}").content.decode()
    assert "a list of objects with <code>name</code> (required)" in page
    assert '<textarea name="option_url"' not in client.get(f"{ADD_SOURCE}?kind=mcp").content.decode()


def test_help_is_not_shown_as_markup_to_who_may_only_look(client):
    page = make_staff("view_datasource").get(change_url(make_source())).content.decode()
    assert "<code>support-desk</code>" in page
    assert "`support-desk`" not in page
