"""Who listens hears of what changed for them, and of nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import orjson
import pytest
from django.db import connection
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from access import tokens
from access.models import ApiToken, Grant, Role
from access.snapshot import Principal
from gateway import listening
from gateway.app import Gateway
from gateway.hearing import Pace
from gateway.tests.conftest import Company, FakeConnector, in_thread, make_user, modern, post, records, until
from gateway.tests.old_clients import Stream as OldStream
from gateway.tests.old_clients import begin
from gateway.tests.test_reads import Library, Shelf, library
from tools.connectors.base import ConnectorError, Context, Offer, Result
from tools.models import DataSource, Synchronisation, Tool

__all__ = ["library"]

SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
TOOLS, PROMPTS, RESOURCES = ({f"{kind}ListChanged": True} for kind in ("tools", "prompts", "resources"))
HEADERS = {"mcp_protocol_version": "2026-07-28", "mcp_method": "subscriptions/listen"}


class Stream:
    """An open `subscriptions/listen`, as its client sees it."""

    is_lost = False

    def __init__(self, gateway: Gateway, token: str, notifications: Any, identifier: Any, path: str) -> None:
        self.when_lost: Callable[[], None] | None = None
        self.identifier = identifier
        self._events: list[Any] = []
        body = orjson.dumps(modern("subscriptions/listen", {"notifications": notifications}, identifier))
        headers = {
            "host": "localhost:8000",
            "content-type": "application/json",
            "authorization": f"Bearer {token}",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "subscriptions/listen",
        }
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": ("192.0.2.7", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "state": {"mcpsite.connection": self},
        }
        incoming = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(incoming)

        async def send(event: Any) -> None:
            self._events.append(event)

        self.task = asyncio.create_task(gateway(scope, receive, send))

    def unsent(self) -> int:
        return 0

    def leave(self) -> None:
        if self.when_lost is not None:
            self.when_lost()

    @property
    def messages(self) -> list[Any]:
        text = b"".join(event.get("body", b"") for event in self._events).decode()
        return [orjson.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]

    @property
    def told(self) -> list[tuple[str, str | None]]:
        """What came after the acknowledgement, each of which names the subscription."""
        rest = [message for message in self.messages[1:] if "method" in message]
        assert all(message["params"]["_meta"][SUBSCRIPTION] == self.identifier for message in rest)
        return [(message["method"].removeprefix("notifications/"), message["params"].get("uri")) for message in rest]


@asynccontextmanager
async def listening_to(
    gateway: Gateway, token: str, notifications: Any, identifier: Any = "s-1", path: str = "/mcp"
) -> AsyncIterator[Stream]:
    stream = Stream(gateway, token, notifications, identifier, path)
    try:
        await until(lambda: stream.messages)
        acknowledged = stream.messages[0]
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"]["_meta"] == {SUBSCRIPTION: identifier}
        yield stream
    finally:
        stream.leave()
        await stream.task


async def test_who_takes_json_alone_cannot_listen(gateway: Gateway, company: Company) -> None:
    body = modern("subscriptions/listen", {"notifications": TOOLS})
    reply = await post(gateway, body, company.token, **HEADERS, accept="application/json")
    assert (reply.status, reply.error["code"], reply.json["id"]) == (406, -32600, 1)
    assert "accept text/event-stream" in reply.error["message"]


async def test_a_stream_is_acknowledged_and_ends_with_its_token(gateway: Gateway, company: Company) -> None:
    async with listening_to(gateway, company.token, TOOLS | {"promptsListChanged": False}, 7) as stream:
        assert stream.messages[0]["params"]["notifications"] == TOOLS
        await in_thread(lambda: tokens.revoke(ApiToken.objects.get(user=company.user)))
        await until(stream.task.done)
        last = stream.messages[-1]
        assert (last["id"], last["result"]["resultType"]) == (7, "complete")
        assert last["result"]["_meta"][SUBSCRIPTION] == 7
        assert len(stream.messages) == 2
    assert gateway.listening.count == 0


async def test_exactly_those_whose_list_differs_are_told(gateway: Gateway, company: Company) -> None:
    def others() -> tuple[Role, str]:
        role = Role.objects.create(name="guard")
        Grant.objects.create(role=role, tool=company.tools["echo"])
        return role, tokens.issue(make_user("gus", role), name="g", scopes=["tools"])[1]

    role, token = await in_thread(others)
    await until(lambda: any(p.username == "gus" for p in gateway.feed.snapshot.tokens.values()))
    async with (
        listening_to(gateway, company.token, TOOLS | PROMPTS | RESOURCES) as clerk,
        listening_to(gateway, company.token, PROMPTS) as deaf,
        listening_to(gateway, company.token, TOOLS, path="/mcp/desk") as desk,
        listening_to(gateway, token, TOOLS) as guard,
    ):
        await in_thread(lambda: Grant.objects.create(role=company.role, tool=company.tools["hidden"]))
        await until(lambda: clerk.told)
        await in_thread(lambda: Grant.objects.create(role=role, tool=company.tools["write"]))
        await until(lambda: guard.told)
        assert clerk.told == guard.told == [("tools/list_changed", None)]
        await in_thread(lambda: company.toolset.tools.add(company.tools["write"]))
        await until(lambda: desk.told)
        assert (deaf.told, len(clerk.told), len(guard.told)) == ([], 1, 1)


class Watched(Shelf):
    """Lets resources be watched."""

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        if method != "resources/subscribe":
            return await super().request(method, params, context)
        if params["uri"] == "desk://never":
            raise ConnectorError("upstream_refused", "no")
        return Result({}, False)


@pytest.fixture
def outside() -> FakeConnector:
    return Watched()


def prefix(gateway: Gateway) -> str:
    """What records call the only token that there is."""
    (principal,) = gateway.feed.snapshot.tokens.values()
    return principal.token


async def knows(gateway: Gateway, library: Library) -> None:
    """The library was put up after the gateway began."""
    role = library.company.role.pk
    await until(lambda: gateway.feed.snapshot.offered.grants.get(role))


async def test_a_resource_that_changed_is_told_to_those_who_may_read_it(gateway: Gateway, library: Library) -> None:
    company = library.company
    source = company.source.pk
    uris = ["desk://hours", "desk://any", "desk://never", "vault://key"]
    await knows(gateway, library)
    async with listening_to(gateway, company.token, {"resourceSubscriptions": uris}) as stream:
        assert stream.messages[0]["params"]["notifications"] == {"resourceSubscriptions": uris[:2]}
        gateway.listening.updated(source, "vault://key")
        gateway.listening.updated(company.toolset.pk, "desk://hours")  # another source
        gateway.listening.updated(source, "desk://any")
        gateway.listening.updated(source, "desk://hours")
        await until(lambda: len(stream.told) > 1)
        assert stream.told == [("resources/updated", "desk://any"), ("resources/updated", "desk://hours")]
        await in_thread(lambda: Grant.objects.all().delete())
        await until(lambda: not gateway.feed.snapshot.offered.grants)
        gateway.listening.updated(source, "desk://hours")
        assert len(stream.told) == 2
    found = await records(tool__in=uris, token=prefix(gateway))
    assert {row.tool: row.code for row in found} == dict(
        zip(uris, ("ok", "ok", "upstream_refused", "not_granted"), strict=True)
    )
    assert all(orjson.loads(row.detail or "")["method"] == "resources/subscribe" for row in found)


class Own(FakeConnector):
    """A server of which each worker has a process."""

    is_own = True
    along: frozenset[str] = frozenset()

    def watch_along(self, uris: frozenset[str]) -> None:
        self.along = uris

    async def watch(self, uri: str) -> None:
        """It does."""


async def test_what_the_process_of_one_worker_says_is_told_at_the_others_that_watch_it(
    gateway: Gateway, other: Gateway, library: Library
) -> None:
    company = library.company
    await knows(gateway, library)
    await knows(other, library)
    here, there = Own(), Own()
    gateway.hearing._ears[company.source.pk].connector = here
    other.hearing._ears[company.source.pk].connector = there
    wanted = {"resourceSubscriptions": ["desk://hours", "desk://any"]}
    async with listening_to(other, company.token, wanted) as stream:
        await until(lambda: here.along == {"desk://hours", "desk://any"})
        assert not there.along
        ear = gateway.hearing._ears[company.source.pk]
        for uri in ("desk://other", "desk://hours", "desk://hours", "desk://any"):
            ear.resource_updated(uri)
        await until(lambda: len(stream.told) > 1)
        assert stream.told == [("resources/updated", "desk://hours"), ("resources/updated", "desk://any")]
    await until(lambda: not here.along)


async def test_a_resource_is_let_go_with_the_last_who_watches_it(
    gateway: Gateway, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    await knows(gateway, library)
    gone: list[str] = []
    monkeypatch.setattr(gateway.listening, "_let_go", lambda source, uri: gone.append(uri))
    wanted = {"resourceSubscriptions": ["desk://hours"]}
    async with listening_to(gateway, library.company.token, wanted):
        async with listening_to(gateway, library.company.token, wanted):
            pass
        assert gone == []
    assert gone == ["desk://hours"]


async def test_a_stream_ends_when_the_time_of_its_token_is_over(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_LOOK_SECONDS", 0.01)
    async with listening_to(gateway, company.token, TOOLS) as stream:
        monkeypatch.setattr(Principal, "is_expired", lambda self: True)
        await until(stream.task.done)


async def test_a_user_has_so_many_streams_and_no_more(gateway: Gateway, company: Company, settings: Any) -> None:
    settings.MCP_STREAMS_PER_USER = 1
    body = modern("subscriptions/listen", {"notifications": TOOLS})
    async with listening_to(gateway, company.token, TOOLS):
        refused = await post(gateway, body, company.token, **HEADERS)
        assert (refused.status, refused.error["data"]["mcpsite/code"]) == (429, "too_many_listeners")
        assert "retry-after" in refused.headers
    async with listening_to(gateway, company.token, TOOLS):
        pass


@pytest.mark.parametrize(
    "notifications",
    [None, [], {"toolsListChanged": 1}, {"resourceSubscriptions": "a://b"}, {"resourceSubscriptions": ["no uri"]}],
)
async def test_a_filter_that_is_none_is_refused(gateway: Gateway, company: Company, notifications: Any) -> None:
    reply = await post(
        gateway, modern("subscriptions/listen", {"notifications": notifications}), company.token, **HEADERS
    )
    assert (reply.status, reply.error["code"]) == (400, -32602)


async def test_all_streams_end_in_order_when_the_worker_stops(gateway: Gateway, company: Company) -> None:
    async with listening_to(gateway, company.token, {}) as stream:
        gateway.listening.close()
        await until(stream.task.done)
        assert stream.messages[-1]["result"]["resultType"] == "complete"


# --- What upstreams say ----------------------------------------------------------------------------------------------


def offer(name: str) -> Offer:
    definition = {"name": name, "inputSchema": {"type": "object"}}
    return Offer(name, definition, {"name": name}, "read")


class Source(FakeConnector):
    """Offers what it is told to."""

    offers: list[Offer] | ConnectorError

    async def discover(self) -> list[Offer]:
        if isinstance(self.offers, ConnectorError):
            raise self.offers
        return self.offers


async def test_a_list_that_changed_at_its_source_reaches_those_who_see_it(gateway: Gateway, company: Company) -> None:
    ear = gateway.hearing._ears[company.source.pk]
    ear.connector = source = Source()
    source.offers = [offer("echo"), offer("write")]
    async with listening_to(gateway, company.token, TOOLS) as stream:
        ear.lists_changed()
        ear.lists_changed()
        await until(lambda: stream.told)
        assert stream.told == [("tools/list_changed", None)]
    found = await records(code="sync", object_id=str(company.source.pk))
    assert [(row.door, orjson.loads(row.detail or "")["missing"]) for row in found] == [("job", ["hidden"])]
    assert not await in_thread(lambda: Tool.objects.get(name="hidden").enabled)
    ear.lists_changed()  # another worker heard it too
    await until(lambda: not gateway.hearing._work)
    assert len(await records(code="sync", object_id=str(company.source.pk))) == 1


async def test_a_source_that_is_heard_for_the_first_time_is_looked_at_by_one_job(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    before = timezone.now() - timedelta(minutes=2)
    await in_thread(lambda: Synchronisation.objects.create(source=company.source, finished_at=before))
    for each in (gateway, other):
        each.hearing._ears[company.source.pk].began()
    await until(lambda: not gateway.hearing._work and not other.hearing._work)
    mine = ProcrastinateJob.objects.filter(args__source_id=str(company.source.pk))
    jobs = await in_thread(lambda: list(mine.values_list("task_name", "lock")))

    def forget() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM procrastinate_jobs")

    await in_thread(forget)
    assert jobs == [("tools.look", f"tools.sync:{company.source.pk}")]


async def test_a_list_that_cannot_be_read_is_on_record_and_stays_as_it_is(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.hearing._MOST_FAILURES", 0)
    ear = gateway.hearing._ears[company.source.pk]
    ear.connector = source = Source()
    source.offers = ConnectorError("upstream_timeout", "too slow")
    ear.lists_changed()
    await until(lambda: not gateway.hearing._work)
    (row,) = await records(code="sync", object_id=str(company.source.pk))
    assert orjson.loads(row.detail or "")["message"] == "too slow"
    assert await in_thread(lambda: Synchronisation.objects.get(source=company.source).error) == "too slow"
    assert await in_thread(lambda: Tool.objects.filter(enabled=True).count()) == 3


async def test_what_is_heard_of_a_server_that_was_replaced_is_not_believed(gateway: Gateway, company: Company) -> None:
    ear = gateway.hearing._ears[company.source.pk]
    ear.connector = source = Source()
    source.offers = []
    await in_thread(
        lambda: DataSource.objects.filter(pk=company.source.pk).update(options={"url": "http://127.0.0.1:10/mcp"})
    )
    ear.lists_changed()
    await until(lambda: not gateway.hearing._work)
    assert await in_thread(lambda: Tool.objects.filter(enabled=True).count()) == 3


def test_a_source_that_says_it_without_end_is_heard_ever_more_seldom() -> None:
    pace, now, moments = Pace(), 100.0, []
    for _ in range(12):
        moments.append(pace.next_at(now))
        now = moments[-1]
    gaps = [round(b - a) for a, b in pairwise(moments)]
    assert moments[0] < 100.1
    assert gaps == [1, 1, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pace.next_at(now + 1000) < now + 1000.1


# --- Sessions of older clients ---------------------------------------------------------------------------------------


def methods(stream: OldStream) -> list[tuple[str, Any]]:
    return [(said["method"].removeprefix("notifications/"), said.get("params")) for _, said in stream.events if said]


async def test_a_session_hears_on_its_own_stream_and_of_what_it_missed(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    stream = await OldStream(gateway, company.token, session).opened()
    await until(lambda: gateway.listening.count == 1)
    await in_thread(lambda: Grant.objects.create(role=company.role, tool=company.tools["hidden"]))
    await until(lambda: methods(stream) == [("tools/list_changed", None)])
    await stream.leave()
    await until(lambda: gateway.listening.count == 0)
    version = gateway.feed.snapshot.version
    await in_thread(lambda: Grant.objects.filter(tool=company.tools["hidden"]).delete())
    await until(lambda: gateway.feed.snapshot.version > version)
    again = await OldStream(gateway, company.token, session).opened()
    await until(lambda: methods(again) == [("tools/list_changed", None)])
    await again.leave()


async def test_a_session_subscribes_at_any_worker(gateway: Gateway, other: Gateway, library: Library) -> None:
    company = library.company
    await knows(gateway, library)
    await knows(other, library)
    session = await begin(gateway, company.token)
    stream = await OldStream(gateway, company.token, session).opened()
    await until(lambda: gateway.listening.count == 1)

    async def ask(method: str, uri: str, at: str = session) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": f"resources/{method}", "params": {"uri": uri}}
        return await post(other, body, company.token, **({"mcp_session_id": at} if at else {}))

    assert (await ask("subscribe", "desk://hours")).json["result"].keys() == {"_meta"}
    assert (await ask("subscribe", "vault://key")).error["data"]["mcpsite/code"] == "unknown_resource"
    assert (await ask("subscribe", "desk://hours", at="")).status == 400
    await until(lambda: list(gateway.listening.watched(company.source.pk)) == ["desk://hours"])
    assert not list(other.listening.watched(company.source.pk))
    gateway.listening.updated(company.source.pk, "desk://hours")
    await until(lambda: methods(stream) == [("resources/updated", {"uri": "desk://hours"})])
    await stream.leave()
    assert not list(gateway.listening.watched(company.source.pk))
    again = await OldStream(other, company.token, session).opened()
    await until(lambda: list(other.listening.watched(company.source.pk)) == ["desk://hours"])
    assert (await ask("unsubscribe", "desk://hours")).result == {}
    assert not list(other.listening.watched(company.source.pk))
    await again.leave()
    found = await records(tool__in=["desk://hours", "vault://key"], token=prefix(gateway))
    assert sorted(row.code for row in found) == ["not_granted", "ok"]
