"""Prompts and resources at `/mcp`: what is granted is listed, read and completed, and each use is on record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from access import tokens
from access.models import Grant
from audit.opening import payload_of
from gateway.app import Gateway
from gateway.tests.conftest import Company, FakeConnector, Reply, in_thread, modern, post, records, until
from tools.connectors.base import ConnectorError, Context, Result
from tools.models import DataSource, Prompt, Resource, Toolset

NOT_FOUND = {"code": -32002, "message": "There is no such thing", "data": {"theirs": 1}}
SHELVES = ("prompts/list", "resources/list", "resources/templates/list")


@dataclass
class Library:
    """What is granted of it, and what is not."""

    company: Company
    prompt: Prompt
    text: Resource
    template: Resource


def add_resource(company: Company, uri: str, **fields: Any) -> Resource:
    key = "uriTemplate" if fields.get("is_template") else "uri"
    definition = orjson.dumps({key: uri, "name": uri, "x-theirs": {"b": 1, "a": [1.0]}}).decode()
    mark = hashlib.sha256(definition.encode()).hexdigest()
    return Resource.objects.create(source=company.source, uri=uri, definition=definition, fingerprint=mark, **fields)


@pytest.fixture
def library(company: Company) -> Library:
    definition = '{"name":"office_welcome","arguments":[{"name":"who","required":true}]}'
    mark = hashlib.sha256(definition.encode()).hexdigest()
    shared = {"source": company.source, "definition": definition, "fingerprint": mark}
    prompt = Prompt.objects.create(name="office_welcome", source_name="welcome", **shared)
    Prompt.objects.create(name="office_secret", source_name="secret", **shared)
    text, template = add_resource(company, "desk://hours"), add_resource(company, "desk://{page}", is_template=True)
    add_resource(company, "desk://closed", enabled=False)
    add_resource(company, "vault://key")
    add_resource(company, "vault://{page}", is_template=True)
    company.toolset.prompts.add(prompt)
    company.toolset.resources.add(text, template)
    Grant.objects.create(role=company.role, toolset=company.toolset)
    return Library(company, prompt, text, template)


class Shelf(FakeConnector):
    """Answers with what it was asked."""

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        self.calls.append({"method": method, **params})
        if self.fails:
            raise self.fails.pop(0)
        said = orjson.dumps(params).decode()
        results: dict[str, dict[str, Any]] = {
            "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": said}}]},
            "resources/read": {
                "contents": [{"uri": params.get("uri"), "text": said}],
                "ttlMs": 7,
                "cacheScope": "public",
            },
            "completion/complete": {"completion": {"values": [said]}},
        }
        return Result(
            {**results[method], "resultType": "complete", "_meta": {"theirs": 1, "mcpsite/record": "false"}}, False
        )


@pytest.fixture
def outside() -> FakeConnector:
    return Shelf()


async def ask(
    gateway: Gateway, token: str, method: str, params: dict[str, Any], era: str = "modern", path: str = "/mcp"
) -> Reply:
    if era == "legacy":
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await post(gateway, body, token, path, mcp_protocol_version="2025-11-25")
    name = {"mcp_name": params.get("name") or params.get("uri", "-")} if method != "completion/complete" else {}
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": method, **name}
    return await post(gateway, modern(method, params), token, path, **headers)


every_era = pytest.mark.parametrize("era", ["modern", "legacy"])


@every_era
async def test_lists_hold_what_is_granted_as_it_came(library: Library, gateway: Gateway, era: str) -> None:
    token = library.company.token
    prompts, resources, templates = [await ask(gateway, token, method, {}, era) for method in SHELVES]
    assert f'"prompts":[{library.prompt.definition}]'.encode() in prompts.body
    assert f'"resources":[{library.text.definition}]'.encode() in resources.body
    assert f'"resourceTemplates":[{library.template.definition}]'.encode() in templates.body
    assert [reply.result.get("cacheScope") for reply in (prompts, resources)] == [
        "private" if era == "modern" else None
    ] * 2


@every_era
async def test_what_is_used_is_asked_of_its_source_and_on_record(
    library: Library, gateway: Gateway, outside: FakeConnector, era: str
) -> None:
    token = library.company.token
    prompt = {"name": "office_welcome", "arguments": {"who": "Zoë"}}
    ref = {"ref": {"type": "ref/prompt", "name": "office_welcome"}, "argument": {"name": "who", "value": "Z"}}
    asked: list[tuple[str, dict[str, Any]]]
    asked = [("prompts/get", prompt), ("resources/read", {"uri": "desk://hours"}), ("completion/complete", ref)]
    replies = [await ask(gateway, token, method, params, era) for method, params in asked]
    assert outside.calls == [
        {"method": "prompts/get", "name": "welcome", "arguments": {"who": "Zoë"}},
        {"method": "resources/read", "uri": "desk://hours"},
        {"method": "completion/complete", **ref, "ref": {"type": "ref/prompt", "name": "welcome"}},
    ]
    hints = [(reply.result.get("ttlMs"), reply.result.get("cacheScope")) for reply in replies]
    assert hints == [(None, None), (7, "private") if era == "modern" else (None, None), (None, None)]
    told = [record for reply in replies for record in await records(reply)]
    objects = [("tools.Prompt", library.prompt), ("tools.Resource", library.text), ("tools.Prompt", library.prompt)]
    for record, reply, (kind, row) in zip(told, replies, objects, strict=True):
        assert str(record.rid) == reply.result["_meta"]["mcpsite/record"]
        assert (record.kind, record.code, record.effect, record.connector) == ("call", "ok", "read", "office")
        assert (record.tool, record.object_type, record.object_id) == (str(row), kind, str(row.pk))
        assert record.definition is not None
        assert record.definition.hex() == row.fingerprint
    assert replies[0].result["_meta"]["theirs"] == 1


async def test_a_template_leads_where_nothing_is_listed_and_not_to_what_is_switched_off(
    library: Library, gateway: Gateway, outside: FakeConnector
) -> None:
    token = library.company.token
    found = await ask(gateway, token, "resources/read", {"uri": "desk://page7"})
    assert found.result["contents"][0]["uri"] == "desk://page7"
    (record,) = await records(found)
    assert (record.tool, record.object_id) == ("desk://page7", str(library.template.pk))
    closed = await ask(gateway, token, "resources/read", {"uri": "desk://closed"})
    assert (closed.error["code"], closed.error["data"]["uri"]) == (-32602, "desk://closed")
    assert [call["uri"] for call in outside.calls] == ["desk://page7"]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("prompts/get", {"name": "office_secret"}, "not_granted"),
    ("prompts/get", {"name": "welcome"}, "unknown_prompt"),
    ("prompts/get", {"name": "office_welcome", "arguments": {"who": 1}}, "malformed"),
    ("resources/read", {"uri": "vault://key"}, "not_granted"),
    ("resources/read", {"uri": "vault://page"}, "not_granted"),
    ("resources/read", {"uri": "other://page"}, "unknown_resource"),
    ("resources/read", {"uri": "no uri"}, "malformed"),
    (
        "completion/complete",
        {"ref": {"type": "ref/resource", "uri": "vault://{page}"}, "argument": {"name": "page", "value": ""}},
        "not_granted",
    ),
    ("completion/complete", {"ref": {"type": "ref/prompt"}, "argument": {"name": "a", "value": ""}}, "malformed"),
]


@every_era
async def test_what_is_not_granted_looks_as_if_it_did_not_exist(
    library: Library, gateway: Gateway, outside: FakeConnector, era: str
) -> None:
    for method, params, code in REFUSED:
        reply = await ask(gateway, library.company.token, method, params, era)
        missing = method == "resources/read" and code != "malformed" and era == "legacy"
        assert reply.error["code"] == (-32002 if missing else -32602), params
        assert "not_granted" not in reply.body.decode()
        (record,) = await records(request_id=reply.headers["x-request-id"])
        assert (record.code, record.decision) == (code, "deny"), params
    assert not outside.calls


@every_era
async def test_the_refusal_of_a_source_is_passed_on_in_the_words_of_the_era(
    library: Library, gateway: Gateway, outside: FakeConnector, era: str
) -> None:
    token, gone = library.company.token, ConnectorError("upstream_refused", "No.", refusal=NOT_FOUND)
    outside.fails = [gone, gone, ConnectorError("upstream_timeout", "Too late.")]
    read = await ask(gateway, token, "resources/read", {"uri": "desk://hours"}, era)
    assert (read.error["code"], read.error["message"]) == (-32602 if era == "modern" else -32002, NOT_FOUND["message"])
    assert (read.error["data"]["uri"], read.error["data"]["mcpsite/code"]) == ("desk://hours", "upstream_refused")
    assert [record.code for record in await records(read)] == ["upstream_refused"]
    # Their code means nothing here, and their data is not ours to vouch for.
    prompt = await ask(gateway, token, "prompts/get", {"name": "office_welcome"}, era)
    assert (prompt.error["code"], "theirs" in prompt.error["data"]) == (-32603, False)
    late = await ask(gateway, token, "prompts/get", {"name": "office_welcome"}, era)
    assert (late.error["message"], [record.code for record in await records(late)]) == (
        "Too late.",
        ["upstream_timeout"],
    )


async def test_what_is_recorded_of_them_follows_the_policy_of_their_source(library: Library, gateway: Gateway) -> None:
    policy = {"arguments": {"who": "length"}, "otherwise": "dropped"}
    await in_thread(lambda: DataSource.objects.filter(pk=library.company.source.pk).update(recording=policy))
    await until(lambda: gateway.feed.current.offered.entries["prompt", "office_welcome"].recording is not None)
    prompt = {"name": "office_welcome", "arguments": {"who": "Zoë", "else": "x"}}
    (record,) = await records(await ask(gateway, library.company.token, "prompts/get", prompt))
    assert orjson.loads(record.shown or "") == {"arguments": {"who": "••• (3 characters)"}}
    (read,) = await records(await ask(gateway, library.company.token, "resources/read", {"uri": "desk://hours"}))
    assert read.shown is None


async def test_scopes_toolsets_and_tags_decide_as_they_do_for_tools(library: Library, gateway: Gateway) -> None:
    company = library.company

    def widen() -> dict[str, str]:
        other = Toolset.objects.create(name="other")
        other.resources.add(Resource.objects.get(uri="vault://key"))
        Resource.objects.filter(uri="vault://key").update(tags=["books"])
        Grant.objects.create(role=company.role, tag="books")
        desk = tokens.issue(company.user, name="desk", scopes=["tools"], toolset=company.toolset)
        return {"desk": desk[1], "rest": tokens.issue(company.user, name="rest", scopes=["read"])[1]}

    made = await in_thread(widen)
    await until(lambda: len(gateway.feed.current.tokens) == 3)

    async def uris(token: str, path: str = "/mcp") -> list[str]:
        listed = await ask(gateway, token, "resources/list", {}, path=path)
        return [each["uri"] for each in listed.result["resources"]]

    assert await uris(company.token) == ["desk://hours", "vault://key"]
    assert await uris(company.token, "/mcp/other") == ["vault://key"]
    assert await uris(made["desk"]) == ["desk://hours"]
    assert await uris(made["rest"]) == []
    refused = await ask(gateway, made["desk"], "resources/read", {"uri": "vault://key"})
    assert refused.error["code"] == -32602


async def test_what_was_read_with_answers_is_not_to_be_cached(
    library: Library, gateway: Gateway, outside: FakeConnector
) -> None:
    params = {"uri": "desk://hours", "inputResponses": {"who": {"action": "decline"}}}
    reply = await ask(gateway, library.company.token, "resources/read", params)
    assert reply.result["ttlMs"] == 0
    (record,) = await records(reply)
    kept = await in_thread(lambda: payload_of(record))
    assert orjson.loads(kept.arguments or b"") == {
        "uri": "desk://hours",
        "mcpsite/inputResponses": params["inputResponses"],
    }
