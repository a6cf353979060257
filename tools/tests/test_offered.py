"""Prompts and resources come by synchronising, and what cannot be told apart is refused with a sentence."""

from __future__ import annotations

import time
from typing import Any

import pytest

from audit.caller import Caller
from tools.connectors.base import ConnectorError, Kind, Offer
from tools.connectors.mcp import McpConnector
from tools.models import DataSource, Prompt, Resource, Tool
from tools.sync import sync_source
from tools.synchronisation import SyncFailed
from tools.synchronisation import synchronise as synchronise_now
from tools.templates import pattern_of
from tools.tests.test_sync import make_definition, make_source


def offer(kind: Kind, name: str, **more: Any) -> Offer:
    key = {"prompt": "name", "resource": "uri", "template": "uriTemplate"}[kind]
    return Offer(name, {key: name, **more}, {}, kind=kind)


@pytest.fixture
def offered(monkeypatch):
    def use(*offers: Offer) -> None:
        async def discover(self: McpConnector) -> list[Offer]:
            return [self._offer(make_definition()), *offers]

        monkeypatch.setattr(McpConnector, "discover", discover)

    return use


def synchronise(source: DataSource) -> dict[str, Any]:
    told = sync_source(source).told()
    told.pop("unchanged")
    return told


@pytest.mark.django_db
def test_they_come_verbatim_go_and_come_back(offered):
    source = make_source(prefix="crm_")
    text, many = offer("resource", "crm://hours", unknown={"kept": [1]}), offer("template", "crm://open/{number}")
    offered(offer("prompt", "welcome", arguments=[]), text, many)
    told = synchronise(source)
    assert told == {"created": ["crm_echo", "prompt welcome", "resource crm://hours", "template crm://open/{number}"]}
    prompt = Prompt.objects.get()
    assert (prompt.name, prompt.source_name) == ("crm_welcome", "welcome")
    assert prompt.definition == '{"name":"crm_welcome","arguments":[]}'
    assert Resource.objects.get(uri="crm://hours").definition == '{"uri":"crm://hours","unknown":{"kept":[1]}}'
    assert Resource.objects.get(is_template=True).uri == "crm://open/{number}"

    before = prompt.updated_at
    assert synchronise(source) == {}
    assert Prompt.objects.get().updated_at == before

    offered(text, many)
    assert synchronise(source) == {"missing": ["prompt welcome"]}
    assert Prompt.objects.get().missing
    offered(offer("prompt", "welcome", arguments=[]), offer("resource", "crm://hours", title="Hours"), many)
    assert synchronise(source) == {"changed": ["prompt welcome", "resource crm://hours"]}
    assert not Prompt.objects.get().missing


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (offer("resource", "crm://hours"), "offers this URI already"),
        (offer("prompt", "welcome"), "another prompt named 'welcome', of the data source first: give this"),
        (offer("prompt", "wel come"), "cannot be used"),
        (offer("prompt", "w" * 65), "has 65 characters with the prefix, and clients take 64"),
        (
            offer("template", "crm://open/{id}/x{?all}"),
            "first offers crm://open/{number}/x{?a,b}, which leads to the same",
        ),
        (offer("resource", "no uri"), "It is no URI"),
        (offer("template", "crm://plain"), "no URI template"),
        (offer("template", "crm://{a}{b}"), "follow each other"),
        (offer("template", "crm://{+a}/x/{b*}"), "several segments"),
        (offer("resource", "crm://large", text="x" * 300_000), "larger than 256 KB"),
        (offer("resource", "crm://nul", text="\0"), "NUL"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_and_takes_nothing_with_it(offered, refused, said):
    first = make_source("first")
    lasting = offer("template", "crm://open/{number}/x{?a,b}")
    offered(offer("resource", "crm://hours"), offer("prompt", "welcome"), lasting)
    sync_source(first)
    Tool.objects.all().delete()
    offered(refused, offer("resource", "crm://other"))
    told = synchronise(make_source("second"))
    assert told["created"] == ["echo", "resource crm://other"]
    assert [said in reason for reason in told["refused"].values()] == [True]
    assert Resource.objects.get(uri="crm://hours").source == first


@pytest.mark.django_db
def test_names_that_not_every_client_takes_are_changed_for_good(offered):
    source = make_source("files", prefix="fs_")
    offered(offer("prompt", "read/me.first"), offer("prompt", "read_me.first"))
    told = synchronise(source)
    assert told["created"] == ["fs_echo", "prompt read/me.first"]
    assert "another prompt named 'fs_read_me_first', of this data source" in told["refused"]["prompt read_me.first"]
    assert (Prompt.objects.get().name, Prompt.objects.get().source_name) == ("fs_read_me_first", "read/me.first")
    source.prefix = "other_"
    source.save()
    synchronise(source)
    assert Prompt.objects.get(source_name="read/me.first").name == "fs_read_me_first"


@pytest.mark.django_db
def test_a_source_that_does_not_answer_keeps_what_it_offered(offered, monkeypatch):
    source = make_source("first")
    offered(offer("resource", "crm://hours"), offer("prompt", "welcome"))
    sync_source(source)

    async def discover(self: McpConnector) -> list[Offer]:
        raise ConnectorError("upstream_timeout", "No answer.")

    monkeypatch.setattr(McpConnector, "discover", discover)
    with pytest.raises(SyncFailed, match="No answer"):
        synchronise_now(source, Caller(actor="ann"), "admin")
    assert Tool.objects.get().enabled
    assert [each.missing for each in (*Prompt.objects.all(), *Resource.objects.all())] == [False, False]


@pytest.mark.parametrize(
    ("template", "uri", "fits"),
    [
        ("test://template/{id}/data", "test://template/123/data", True),
        ("test://template/{id}/data", "test://template/1/2/data", False),
        ("test://template/{id}/data", "test://template//data", False),
        ("test://template/{id}/data", "test://template/1/data/", False),
        ("test://template/{id}/data", "test://template/1/DATA", False),
        ("file:///{+path}", "file:///etc/hosts", True),
        ("file://{/path*}", "file:///etc/hosts", True),
        ("db://{table}/rows{?limit,offset}", "db://users/rows?limit=5", True),
        ("db://{table}/rows{?limit,offset}", "db://users/rows", True),
        ("db://{table}/rows{?limit,offset}", "db://users/rowsandmore", False),
        ("a.b://{x}", "aXb://1", False),
    ],
)
def test_a_template_knows_its_own(template, uri, fits):
    assert bool(pattern_of(template).fullmatch(uri)) is fits


def test_no_template_takes_long_to_say_no():
    hostile = pattern_of("x:" + "-".join(f"{{v{n}}}" for n in range(60)))
    started = time.thread_time()
    assert not hostile.fullmatch("x:" + "-" * 1000 + "!")
    assert not pattern_of("x:{a}-{b}/{+c}/end").fullmatch("x:" + "a-" * 250 + "/" * 250 + "e")
    assert time.thread_time() - started < 0.05
