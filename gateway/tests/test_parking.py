"""Calls that wait for their client: parked at one worker, answered at any, and closed whatever becomes of either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import pytest
from django.db import connection

from access import policy, tokens
from access.models import ApiToken, Grant
from audit.entry import uuid7
from audit.opening import payload_of
from gateway import parking
from gateway.app import Gateway
from gateway.mail import MailAway
from gateway.terms import Answer, Call
from gateway.tests.conftest import Company, FakeConnector, Reply, in_thread, make_user, records, until
from gateway.tests.test_states import send
from mcpsite.postgres import conninfo
from tools import exact
from tools.connectors.base import Client, Context, Result, Spec

FORM = {"message": "Who?", "requestedSchema": {"type": "object"}}
ANSWER = {"action": "accept", "content": {"name": "Zoë"}}


@dataclass
class Asking(FakeConnector):
    """A server of the older revisions: asks in the middle of a call, as often as it shall, and says what it heard."""

    times: int = 1
    at_once: bool = False
    heard: list[dict[str, Any]] = field(default_factory=list)

    @property
    def asks_meanwhile(self) -> bool:
        return True

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        self.contexts.append(context)
        assert context.client is not None
        ask = partial(context.client.ask, "elicitation/create", FORM)
        if self.at_once:
            self.heard += await asyncio.gather(*(ask() for _ in range(self.times)))
        while len(self.heard) < self.times:
            if self.heard and self.gate is not None:
                await self.gate.wait()
            self.heard.append(await ask())
        return Result({"content": [{"type": "text", "text": orjson.dumps(self.heard).decode()}]}, False)


@pytest.fixture
def outside() -> FakeConnector:
    return Asking()


@pytest.fixture
async def other(gateway: Gateway, outside: FakeConnector) -> AsyncIterator[Gateway]:
    """Another worker of the same site."""
    made = Gateway(conninfo(connection.settings_dict))
    made.connectors.of = gateway.connectors.of  # type: ignore[method-assign]
    made.pipeline._connector = gateway.connectors.of
    await made.start()
    await until(lambda: made.ready() and made.mail.is_listening and gateway.mail.is_listening)
    yield made
    await made.stop()


def answer(asked: Reply, *leave_out: str) -> dict[str, Any]:
    keys = [key for key in asked.result["inputRequests"] if key not in leave_out]
    return {"inputResponses": dict.fromkeys(keys, ANSWER), "requestState": asked.result["requestState"]}


@pytest.mark.parametrize(
    ("tool", "codes"),
    [("echo", ["input_required", "answered", "ok"]), ("write", ["intended", "input_required", "answered", "ok"])],
)
async def test_a_call_is_asked_at_one_worker_and_answered_at_another(
    company: Company, gateway: Gateway, other: Gateway, outside: Asking, tool: str, codes: list[str]
) -> None:
    asked = await send(gateway, company.token, tool)
    assert asked.result["resultType"] == "input_required"
    assert list(asked.result["inputRequests"].values()) == [{"method": "elicitation/create", "params": FORM}]
    assert gateway.reading().states["mcpsite_calls_parked"] == {(): [1]}
    reply = await send(other, company.token, tool, **answer(asked))
    assert orjson.loads(reply.result["content"][0]["text"]) == [ANSWER]
    assert reply.result["_meta"]["mcpsite/call"] == asked.result["_meta"]["mcpsite/call"]
    told = await records(reply)
    assert [record.code for record in told] == codes
    assert [record.kind for record in told] == ["intent"] * (len(codes) - 1) + ["outcome"]
    assert told[-2].request_id == reply.headers["x-request-id"]
    kept = await in_thread(lambda: payload_of(told[-2]))
    assert orjson.loads(kept.arguments or b"") == {"mcpsite/inputResponses": answer(asked)["inputResponses"]}
    assert len(outside.contexts) == 1
    assert len(gateway.parking) == 0


async def test_each_round_asks_anew_and_a_state_is_used_once(
    company: Company, gateway: Gateway, other: Gateway, outside: Asking
) -> None:
    outside.times = 2
    first = await send(gateway, company.token)
    second = await send(other, company.token, **answer(first))
    assert second.result["requestState"] != first.result["requestState"]
    for used in (
        await send(gateway, company.token, **answer(first)),
        await send(other, company.token, **answer(first)),
    ):
        assert (used.status, used.error["code"]) == (400, -32602)
        assert [record.code for record in await records(request_id=used.headers["x-request-id"])] == ["malformed"]
    third = await send(gateway, company.token, **answer(second))
    assert third.result["content"]


async def test_what_is_asked_at_once_goes_out_together_and_what_was_left_out_again(
    company: Company, gateway: Gateway, outside: Asking
) -> None:
    outside.times, outside.at_once = 2, True
    first = await send(gateway, company.token)
    _, two = first.result["inputRequests"]
    second = await send(gateway, company.token, **answer(first, two))
    assert list(second.result["inputRequests"]) == [two]
    third = await send(gateway, company.token, **answer(second))
    assert orjson.loads(third.result["content"][0]["text"]) == [ANSWER, ANSWER]


async def test_a_parked_call_is_its_users_alone(company: Company, gateway: Gateway, outside: Asking) -> None:
    asked = await send(gateway, company.token)
    before = gateway.feed.snapshot
    _, olga = await in_thread(lambda: tokens.issue(make_user("olga", company.role), name="o", scopes=["tools"]))
    await until(lambda: gateway.feed.snapshot is not before and len(gateway.feed.snapshot.tokens) == 2)
    assert (await send(gateway, olga, **answer(asked))).error["code"] == -32602
    assert (await send(gateway, company.token, **answer(asked))).result["content"]


async def test_when_the_worker_of_a_call_has_died_its_client_is_told_and_the_record_says_unknown(
    company: Company, gateway: Gateway, other: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.mail._BACK_SECONDS", 0)
    asked, done = await send(other, company.token, "echo"), await send(other, company.token, "echo")
    assert (await send(other, company.token, "echo", **answer(done))).result["content"]
    before = await codes_of(done)
    await other.mail.stop()
    lost = await send(gateway, company.token, "echo", **answer(asked))
    assert lost.result["isError"] is True
    assert lost.result["_meta"]["mcpsite/code"] == "call_lost"
    assert [record.code for record in await records(asked)] == ["input_required", "unknown"]
    assert [key[-1] for key in gateway.meter.calls] == ["unknown"]
    again = await send(gateway, company.token, "echo", **answer(asked))
    assert again.error["code"] == -32602
    assert [record.code for record in await records(asked)] == ["input_required", "unknown"]
    # What had its outcome keeps it, whoever uses its state again.
    assert (await send(gateway, company.token, "echo", **answer(done))).error["code"] == -32602
    assert await codes_of(done) == before


async def test_without_redis_a_call_of_another_worker_is_not_given_up(
    company: Company, gateway: Gateway, other: Gateway
) -> None:
    asked = await send(other, company.token, "echo")

    async def hang(channel: str, kind: str, payload: dict[str, Any]) -> int:
        raise MailAway("Timeout reading from localhost")

    gateway.mail._publish = hang  # type: ignore[method-assign]
    for _ in ("it does not answer", "nothing is heard of it either"):
        away = await send(gateway, company.token, "echo", **answer(asked))
        assert away.result["_meta"]["mcpsite/code"] == "holder_unreachable"
        await gateway.mail.stop()
    assert (await send(other, company.token, "echo", **answer(asked))).result["content"]


async def test_who_waits_for_a_letter_that_was_lost_is_told_so(
    company: Company, gateway: Gateway, other: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "_PING_SECONDS", 0.01)
    asked = await send(other, company.token, "echo")
    publish = other.mail._publish

    async def lose(channel: str, kind: str, payload: dict[str, Any]) -> int:
        return 1 if "answer" in payload else await publish(channel, kind, payload)

    other.mail._publish = lose  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        lost = await send(gateway, company.token, "echo", **answer(asked))
    assert lost.result["_meta"]["mcpsite/code"] == "holder_unreachable"
    assert (await codes_of(asked))[-1] == "ok"


def test_an_answer_keeps_its_depth_on_its_way_between_workers() -> None:
    deep = orjson.loads(b"[" * 197 + b'"e+"' + b"]" * 197)
    one = Answer(b"{}", {"m": 2**70}, "ok", uuid7(), uuid7(), lacking={"a": deep}, refusal={"data": deep})
    assert parking._read({"answer": exact.taken(exact.written(parking._written(one)))}, one.call_id) == one


async def codes_of(asked: Reply) -> list[str]:
    return [record.code for record in await records(asked)]


async def is_cancelled(asked: Reply) -> None:
    async with asyncio.timeout(5):
        while (await codes_of(asked))[-1] != "cancelled":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", [lambda: tokens.revoke(ApiToken.objects.get()), lambda: Grant.objects.all().delete()])
async def test_a_parked_call_ends_with_its_token_or_grant(
    company: Company, gateway: Gateway, end: Callable[[], Any]
) -> None:
    asked = await send(gateway, company.token)
    await in_thread(end)
    await is_cancelled(asked)
    assert len(gateway.parking._calls) == 0


async def test_a_parked_call_ends_with_its_time(
    company: Company, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_SECONDS", 0.01)
    await is_cancelled(await send(gateway, company.token, "echo"))
    assert len(gateway.parking) == 0


async def test_a_parked_call_ends_with_its_worker(company: Company, gateway: Gateway, other: Gateway) -> None:
    asked = await send(other, company.token)
    await other.parking.stop()
    await is_cancelled(asked)


async def test_a_user_has_so_many_parked_calls_and_no_more(
    company: Company, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "_MOST_OF_USER", 1)
    asked = await send(gateway, company.token)
    refused = await send(gateway, company.token)
    assert refused.result["_meta"]["mcpsite/code"] == "too_many_parked"
    assert (await send(gateway, company.token, **answer(asked))).result["content"]
    await is_cancelled(refused)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_client_that_leaves_takes_its_call_along(
    company: Company, gateway: Gateway, other: Gateway, outside: Asking, elsewhere: bool
) -> None:
    outside.times, outside.gate = 2, asyncio.Event()
    asked = await send(gateway, company.token)
    going_on = asyncio.create_task(send(other if elsewhere else gateway, company.token, **answer(asked)))
    await until(lambda: outside.heard)
    going_on.cancel()
    await is_cancelled(asked)


class Person(Client):
    """A client that can be asked meanwhile."""

    capabilities: Mapping[str, Any] = {"elicitation": {}}

    def tell(self, method: str, params: dict[str, Any]) -> None:
        raise AssertionError

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return ANSWER


async def test_a_client_that_is_asked_meanwhile_leaves_the_same_records(
    company: Company, gateway: Gateway, outside: Asking
) -> None:
    outside.times = 2
    snapshot = gateway.feed.current
    assert snapshot is not None
    principal = policy.principal_of(snapshot, company.token)
    call = Call(principal, "echo", {"text": "x"}, b'{"text":"x"}', "mcp", peer=Person())
    done = await gateway.parking.carry_out(call, None, snapshot, company.token)
    told = await records(call_id=done.call_id)
    assert [record.code for record in told] == ["input_required", "answered"] * 2 + ["ok"]
    kept = await in_thread(lambda: [payload_of(record).arguments for record in told])
    answered = orjson.dumps({"mcpsite/inputResponses": {"question": ANSWER}})
    assert kept == [b'{"text":"x"}', answered, None, answered, None]
