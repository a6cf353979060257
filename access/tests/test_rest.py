"""REST knows its callers, keeps to scopes and permissions, and says no in one way."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.db import InternalError, OperationalError
from django.test import Client
from django.utils import timezone
from psycopg.errors import ReadOnlySqlTransaction
from rest_framework.test import APIClient

from access import tokens
from access.models import ApiToken, User
from audit.models import Record
from tools.models import DataSource, Tool, Toolset

pytestmark = pytest.mark.django_db
TOOLS = "/api/v1/tools/"


def make_client(*permissions: str, scopes=("read", "write", "tools"), **values) -> APIClient:
    user, _ = User.objects.get_or_create(username="dora")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    _, secret = tokens.issue(user, name="test", scopes=list(scopes), **values)
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def make_tool(name: str) -> Tool:
    source, _ = DataSource.objects.get_or_create(name="desk", kind="mcp")
    return Tool.objects.create(source=source, name=name)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer mcps_x",
        "Bearer sk-x",
        "Bearer a.b.c",
        "Bearer " + "x" * 100_000,
        "Bearer é",
        "Basic eDp4",
    ],
)
def test_a_bad_credential_is_401_with_a_challenge(header):
    answer = Client(headers={"Authorization": header}).get(TOOLS)
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"] == 'Bearer realm="mcpsite"'
    assert answer["Content-Type"] == "application/problem+json"


def refused_with(secret: str, address: str = "192.0.2.1") -> int:
    header = {"Authorization": f"Bearer {secret}"}
    return Client(headers=header, REMOTE_ADDR=address).get(TOOLS).status_code


def refusals() -> list[tuple[str | None, str | None, dict[str, object]]]:
    found = Record.objects.filter(kind="auth", code="invalid_token", door="rest").order_by("id")
    return [(each.token, each.decision, json.loads(each.detail or "{}")) for each in found]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("expired", {"expires_at": timezone.now() - timedelta(minutes=1)}),
        ("revoked", {"revoked_at": timezone.now()}),
        ("inactive", {}),
    ],
)
def test_the_use_of_a_token_that_is_over_is_on_record_with_its_name_and_why(reason, change):
    user = User.objects.create(username="dora", is_active=reason != "inactive")
    token, secret = tokens.issue(user, name="test", scopes=["read"])
    ApiToken.objects.filter(pk=token.pk).update(**change)
    assert refused_with(secret) == 401
    assert refusals() == [(token.prefix, "deny", {"reason": reason})]


def test_a_flood_of_bad_tokens_is_one_record_an_address():
    assert {refused_with("mcps_wrong") for _ in range(30)} == {401}
    assert refused_with("x.y.z", "192.0.2.2") == 401
    assert refusals() == [(None, "deny", {"reason": "unknown"})] * 2


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (lambda client: client.get(TOOLS), "none"),
        (lambda client: client.post("/api/v1/auth/token/refresh/", {"refresh": "a.b.c"}), "unknown"),
        (lambda client: client.post("/api/v1/auth/token/verify/", {"token": "a.b.c"}), "unknown"),
        (lambda client: client.post("/api/v1/auth/token/revoke/", {"refresh": "a.b.c"}), "unknown"),
    ],
)
def test_whoever_has_no_token_or_one_of_no_session_is_on_record_too(send, reason):
    client = APIClient()
    assert [send(client).status_code for _ in range(3)] == [401] * 3
    assert refusals() == [(None, "deny", {"reason": reason})]


def test_a_bad_token_does_not_fall_back_to_the_session():
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    assert client.get(TOOLS).status_code == 200
    assert client.get(TOOLS, headers={"Authorization": "Bearer mcps_x"}).status_code == 401


def test_a_session_needs_the_csrf_token_to_change_anything():
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    answer = client.post("/api/v1/toolsets/", {"name": "x"}, content_type="application/json")
    assert answer.status_code == 403
    assert not Toolset.objects.exists()


def test_reading_needs_the_scope_read_and_changing_the_scope_write():
    reader = make_client("view_toolset", "add_toolset", scopes=["read"])
    writer = make_client("view_toolset", "add_toolset", scopes=["write"])
    assert reader.get("/api/v1/toolsets/").status_code == 200
    answer = reader.post("/api/v1/toolsets/", {"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert writer.get("/api/v1/toolsets/").json()["code"] == "insufficient_scope"
    assert writer.post("/api/v1/toolsets/", {"name": "x"}).status_code == 201


def test_a_scope_gives_nothing_that_the_user_lacks():
    assert make_client("view_toolset").post("/api/v1/toolsets/", {"name": "x"}).json()["code"] == "permission_denied"


def test_a_token_narrowed_to_a_toolset_sees_only_its_tools():
    toolset = Toolset.objects.create(name="support")
    toolset.tools.add(make_tool("inside"))
    make_tool("outside")
    client = make_client("view_tool", "view_toolset", toolset=toolset)
    assert [each["name"] for each in client.get(TOOLS).json()["results"]] == ["inside"]
    assert client.get(f"{TOOLS}outside/").status_code == 404
    assert client.get("/api/v1/toolsets/").json()["code"] == "insufficient_scope"


@pytest.mark.parametrize("ending", ["revoked", "expired", "user off"])
def test_a_token_ends_at_once(ending):
    client = make_client("view_tool")
    assert client.get(TOOLS).status_code == 200
    user = User.objects.get(username="dora")
    if ending == "revoked":
        tokens.revoke(user.api_tokens.get())
    elif ending == "expired":
        user.api_tokens.update(expires_at="2020-01-01T00:00:00Z")
    else:
        User.objects.update(is_active=False)
    assert client.get(TOOLS).status_code == 401


def test_a_problem_names_the_request_and_each_field():
    client = make_client("add_toolset")
    answer = client.post("/api/v1/toolsets/", {"name": "No Slug"}, headers={"X-Request-Id": "request-1234"})
    body = answer.json()
    assert answer["Content-Type"] == "application/problem+json"
    assert (body["status"], body["title"], body["code"]) == (400, "Bad Request", "invalid")
    assert body["request_id"] == answer["X-Request-Id"] == "request-1234"
    assert body["type"] == "urn:mcpsite:problem:invalid"
    assert body["errors"]["name"][0]["code"] == "invalid"


@pytest.mark.parametrize("path", ["/api/nothing", "/api/v1/nothing/", "/api/v1/tools/no_such_tool/"])
def test_what_does_not_exist_is_a_problem_too(path):
    answer = make_client("view_tool").get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer["Content-Type"] == "application/problem+json"


def test_a_body_that_is_no_json_is_a_problem():
    answer = make_client("add_toolset").post("/api/v1/toolsets/", data="{", content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "parse_error")


def test_a_failure_inside_is_a_problem_without_details(monkeypatch):
    def fail(*args):
        raise RuntimeError("canary")

    client = make_client("view_tool")
    client.raise_request_exception = False
    monkeypatch.setattr("tools.api.ToolViewSet.list", fail)
    answer = client.get(TOOLS)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert b"canary" not in answer.content


@pytest.mark.parametrize(
    ("error", "cause"), [(OperationalError, None), (InternalError, ReadOnlySqlTransaction("canary"))]
)
def test_a_database_that_does_not_answer_or_write_is_503(monkeypatch, error, cause):
    def fail(*args):
        raise error("canary") from cause

    client = make_client("view_tool")
    monkeypatch.setattr("tools.api.ToolViewSet.list", fail)
    answer = client.get(TOOLS)
    assert (answer.status_code, answer.json()["code"], answer["Retry-After"]) == (503, "database_unavailable", "1")
    assert b"canary" not in answer.content


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "x", "name": "y"}',
        b'{"name": "x", "tools": [{"a": 1, "a": 1}]}',
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": "\\ud800"}',
        b'{"name": "\xff"}',
        b'{"name": "a\\u0000"}',
        b'{"a\\u0000": 1}',
        b'{"name": ["a", "\\u0000"]}',
        b'{"name": "\x00"}',
        b'{"name": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"name": ' + b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b'{"name": "x"} {}',
        b"{'name': 'x'}",
        b"name=x",
    ],
)
def test_what_can_be_read_in_two_ways_is_not_read(body):
    answer = make_client("add_toolset").post("/api/v1/toolsets/", data=body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "parse_error")
    assert not Toolset.objects.exists()


def test_a_backslash_before_u0000_is_no_nul():
    body = b'{"name": "x", "title": "\\\\u0000"}'
    answer = make_client("add_toolset").post("/api/v1/toolsets/", data=body, content_type="application/json")
    assert answer.json()["title"] == "\\u0000"


def test_a_body_beyond_the_limit_is_refused(settings):
    settings.MCP_MAX_BODY_BYTES = 100
    client = make_client("add_toolset")
    assert client.post("/api/v1/toolsets/", {"name": "x", "title": "t" * 50}).status_code == 201
    answer = client.post("/api/v1/toolsets/", {"name": "y", "title": "t" * 100})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "x"])
def test_only_json_is_taken(media_type):
    answer = make_client("add_toolset").post("/api/v1/toolsets/", data=b'{"name": "x"}', content_type=media_type)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_only_json_and_pages_are_given():
    client = make_client("view_toolset")
    answer = client.get("/api/v1/toolsets/", headers={"Accept": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert client.get("/api/v1/toolsets/", headers={"Accept": "*/*"})["Content-Type"] == "application/json"


def test_what_is_not_offered_says_what_is():
    client = make_client("view_tool", "view_record")
    answer = client.put(TOOLS, {})
    assert (answer.status_code, answer["Allow"]) == (405, "GET, POST, HEAD, OPTIONS")
    answer = client.delete("/api/v1/audit/records/")
    assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_head_has_the_headers_of_get_and_options_says_what_there_is():
    client, url = make_client("view_tool"), f"{TOOLS}{make_tool('find').name}/"
    got, head = client.get(url), client.head(url)
    assert (head.status_code, head.content, head["ETag"]) == (200, b"", got["ETag"])
    options = client.options(url)
    assert (options.status_code, options["Allow"]) == (200, "GET, PUT, PATCH, DELETE, HEAD, OPTIONS")


def test_a_missing_slash_is_forgiven_to_readers_only():
    client = make_client("view_tool", "add_toolset")
    answer = client.get("/api/v1/tools?limit=1")
    assert (answer.status_code, answer["Location"]) == (301, "/api/v1/tools/?limit=1")
    answer = client.post("/api/v1/toolsets", {"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "slash" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["roles/99999999999999999999/", "roles/-1/", "roles/x/", "roles/1%00/", "tools/a%00b/", "grants/1/", "tokens/%FF/"],
)
def test_an_id_that_cannot_be_one_is_not_found(path):
    client = make_client("view_role", "view_tool", "view_grant", "view_apitoken")
    assert client.get(f"/api/v1/{path}").status_code == 404
