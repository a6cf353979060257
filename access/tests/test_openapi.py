"""The description of the API says how each operation refuses, and what its headers are."""

from __future__ import annotations

import json
from functools import cache
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

pytestmark = pytest.mark.django_db


@cache
def described() -> dict[str, Any]:
    out = StringIO()
    call_command("spectacular", "--format", "openapi-json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def operations():
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_refusals_are_problems_and_every_answer_has_a_request_id():
    count = 0
    for name, operation in operations():
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"], (name, status)
            assert response["description"] or status < "300", (name, status)
            if status >= "400":
                assert "content" in response, (name, status)
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (name, status)
                assert content["example"]["status"] == int(status), (name, status)
                count += 1
    assert count > 300


def test_whatever_is_not_a_login_needs_a_credential():
    open_to_all = {name for name, operation in operations() if {} in operation["security"]}
    assert open_to_all == {f"POST /api/v1/auth/token/{ending}" for ending in ("", "refresh/", "verify/", "revoke/")}
    assert set(described()["components"]["securitySchemes"]) == {"bearer", "session"}


def test_changes_take_if_match_and_reads_if_none_match():
    for name, operation in operations():
        headers = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "header"}
        responses = operation["responses"]
        assert ("If-Match" in headers) == ("412" in responses), name
        assert ("If-None-Match" in headers) == ("304" in responses), name
        if "304" in responses:
            assert "ETag" in responses["200"]["headers"], name


def test_every_operation_says_what_it_does_in_a_few_words():
    for name, operation in operations():
        assert 0 < len(operation["summary"]) < 100, name
    summaries = {operation["operationId"]: operation["summary"] for _, operation in operations()}
    assert summaries["tokens_destroy"] == "Revoke an API token"
    assert summaries["audit_records_list"] == "List ledger records"


def test_secrets_are_written_only():
    schemas = described()["components"]["schemas"]
    assert schemas["User"]["properties"]["password"]["writeOnly"] is True
    assert schemas["DataSource"]["properties"]["secrets"]["writeOnly"] is True
    assert "secret" not in schemas["Token"]["properties"]
