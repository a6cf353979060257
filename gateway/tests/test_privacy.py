"""What a tool's policy keeps out of its records, and secrets that get nowhere."""

from __future__ import annotations

import base64
import io
import json
import logging
import secrets
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis
from django.conf import settings
from django.db import connection, connections
from django.utils import timezone

from audit.datakeys import Subject
from audit.export.lines import json_line, pages
from audit.models import DataKey, Record
from audit.opening import payload_of
from audit.subjects import subject_key
from gateway.app import Gateway
from gateway.tests.conftest import Company, FakeConnector, call, in_thread, modern, post, records, until
from mcpsite.logs import JsonFormatter
from tools.connectors.base import ConnectorError
from tools.models import DataSource, Tool
from tools.recording import subject_hash
from tools.sync import check_source


async def use(gateway: Gateway, policy: Any, name: str = "echo", **fields: Any) -> None:
    """Give the tool a policy, and wait until the process has it."""

    def save() -> int:
        Tool.objects.filter(name=name).update(recording=policy, **fields)
        with connection.cursor() as cursor:
            cursor.execute("SELECT version FROM access_policyversion")
            return int(cursor.fetchone()[0])

    version = await in_thread(save)
    await until(lambda: gateway.feed.snapshot.version >= version)


async def test_without_a_policy_nothing_is_shown_and_everything_is_kept(gateway: Gateway, company: Company) -> None:
    (record,) = await records(await call(gateway, company.token, "echo", {"text": "hello"}))
    assert record.shown is None
    kept = await in_thread(lambda: payload_of(record))
    assert (kept.arguments, kept.result) == (b'{"text":"hello"}', None)
    assert gateway.feed.snapshot.tools["echo"].recording is None


async def test_a_policy_shows_masks_and_drops(gateway: Gateway, company: Company) -> None:
    await use(gateway, {"arguments": {"text": "clear", "mail": "domain", "note": "dropped"}, "results_kb": 4})
    arguments = {"text": "hi", "mail": "ada@example.com", "note": "canary", "other": 1}
    (record,) = await records(await call(gateway, company.token, "echo", arguments))
    assert json.loads(record.shown or "") == {"text": "hi", "mail": "•••@example.com"}
    kept = await in_thread(lambda: payload_of(record))
    assert kept.arguments is None
    assert orjson.loads(kept.some_arguments or b"") == {"text": "hi", "mail": "ada@example.com", "other": 1}
    assert orjson.loads(kept.result or b"")["content"][0]["text"] == "hi"
    assert record.args_commit is not None


async def test_a_result_that_is_too_large_is_cut(gateway: Gateway, company: Company) -> None:
    await use(gateway, {"results_kb": 1})
    (record,) = await records(await call(gateway, company.token, "echo", {"text": "x" * 5000}))
    kept = await in_thread(lambda: payload_of(record))
    assert kept.result is None
    assert len(kept.some_result or b"") == 1024


async def test_an_intent_has_the_arguments_and_its_outcome_the_result(gateway: Gateway, company: Company) -> None:
    await use(gateway, {"arguments": {"text": "dropped"}, "otherwise": "clear", "results_kb": 4}, "write")
    intent, outcome = await records(await call(gateway, company.token, "write", {"text": "canary", "n": 1}))
    assert (intent.shown, outcome.shown) == ('{"n":1}', None)
    first, second = await in_thread(lambda: (payload_of(intent), payload_of(outcome)))
    assert (first.some_arguments, first.result) == (b'{"n":1}', None)
    assert second.some_arguments is None
    assert second.result is not None


async def test_a_refused_call_follows_the_policy_of_the_tool_it_named(gateway: Gateway, company: Company) -> None:
    await use(gateway, {"otherwise": "dropped"}, "hidden")
    reply = await call(gateway, company.token, "hidden", {"text": "canary"})
    (record,) = await records(call_id=reply.error["data"]["mcpsite/call"])
    assert record.code == "not_granted"
    kept = await in_thread(lambda: payload_of(record))
    assert (kept.arguments, kept.some_arguments) == (None, None)


async def test_the_source_says_what_its_tools_do_not(gateway: Gateway, company: Company) -> None:
    def save() -> None:
        company.source.recording = {"arguments": {"text": "length"}}
        company.source.save()

    await in_thread(save)
    await until(lambda: gateway.feed.snapshot.tools["echo"].recording)
    (record,) = await records(await call(gateway, company.token, "echo", {"text": "hello"}))
    assert json.loads(record.shown or "") == {"text": "••• (5 characters)"}


async def test_data_belongs_to_the_subject_that_the_policy_names(gateway: Gateway, company: Company) -> None:
    await use(gateway, {"subject": {"argument": "customer", "kind": "customer"}})
    (record,) = await records(await call(gateway, company.token, "echo", {"text": "x", "customer": "C-42"}))
    (other,) = await records(await call(gateway, company.token, "echo", {"text": "x"}))

    def look() -> tuple[Subject, Subject, str]:
        keys = [DataKey.objects.get(pk=str(each.key_id)) for each in (record, other)]
        mine, actor = (Subject(key.subject_kind, key.subject) for key in keys)
        return mine, actor, subject_hash(subject_key(), "customer", "C-42")

    mine, actor, hashed = await in_thread(look)
    assert mine == Subject("customer", hashed)
    assert actor == Subject("user", str(company.user.pk))


async def test_a_policy_that_cannot_be_used_switches_its_tool_off(
    gateway: Gateway, company: Company, caplog: pytest.LogCaptureFixture
) -> None:
    await use(gateway, {"arguments": {"text": "no such treatment"}})
    assert "echo" not in gateway.feed.snapshot.tools
    assert "policy of recording" in caplog.text


async def test_after_keys_were_destroyed_a_process_uses_new_ones(gateway: Gateway, company: Company) -> None:
    (before,) = await records(await call(gateway, company.token, "echo"))

    def destroy() -> None:
        DataKey.objects.filter(pk=str(before.key_id)).update(wrapped=None, destroyed_at=timezone.now())

    await in_thread(destroy)
    await until(lambda: gateway.feed.snapshot.erased_at)
    (after,) = await records(await call(gateway, company.token, "echo"))
    assert (await in_thread(lambda: payload_of(after))).arguments == b'{"text":"hello"}'


# --- Threat I5: forty canaries ----------------------------------------------------------------------------------------


def canaries() -> dict[str, str]:
    """Secrets by name: what data sources hold, and what has the shape of one."""
    made = {f"source{n}": f"canary-{secrets.token_hex(8)}" for n in range(16)}
    made |= {f"odd{n}": f'ca"na\\ry é {secrets.token_hex(8)}/+' for n in range(4)}
    made |= {f"token{n}": f"mcps_{secrets.token_urlsafe(32)}" for n in range(4)}
    for n in range(4):
        parts = (
            base64.urlsafe_b64encode(orjson.dumps({part: secrets.token_hex(6)})).decode().rstrip("=")
            for part in ("a", "b")
        )
        made[f"jwt{n}"] = ".".join((*parts, secrets.token_urlsafe(32)))
    made |= {f"aws{n}": "AKIA" + base64.b32encode(secrets.token_bytes(10)).decode() for n in range(4)}
    made |= {
        f"pem{n}": f"-----BEGIN PRIVATE KEY-----{secrets.token_hex(30)}-----END PRIVATE KEY-----" for n in range(4)
    }
    made |= {f"url{n}": secrets.token_hex(10) for n in range(4)}
    return made


def spoken(name: str, secret: str) -> str:
    """As it comes up in a text."""
    return f"postgresql://bob:{secret}@db.example/x" if name.startswith("url") else f"it is {secret} indeed"


def needles(secret: str) -> Iterator[bytes]:
    """What a search looks for: the secret as it is, and as JSON and as hexadecimal digits have it."""
    middle = secret.partition("-----")[2].partition("-----")[2].partition("-----")[0] or secret
    for form in (middle, json.dumps(middle)[1:-1], json.dumps(middle, ensure_ascii=False)[1:-1]):
        yield form.encode()
        yield form.encode().hex().encode()


def dump() -> Iterator[tuple[str, bytes]]:
    """Every row of every table as text."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            yield f"table {table}", "\n".join(row[0] for row in cursor.fetchall()).encode()
    connections["owner"].close()


def cached() -> Iterator[tuple[str, bytes]]:
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        for key in client.scan_iter():
            yield "redis", key
            if client.type(key) == b"string":
                yield "redis", client.get(key) or b""
            elif client.type(key) == b"hash":
                yield "redis", b" ".join(part for pair in client.hgetall(key).items() for part in pair)


async def test_forty_canaries_get_nowhere(
    gateway: Gateway, company: Company, outside: FakeConnector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    birds = canaries()
    assert len(birds) == 40

    def plant() -> None:
        kept = {name: secret for name, secret in birds.items() if name.startswith(("source", "odd"))}
        DataSource.objects.create(name="vault", kind="mcp", secrets=kept)

    await in_thread(plant)
    await use(gateway, {"otherwise": "clear", "results_kb": 64})
    await use(gateway, {"otherwise": "clear", "results_kb": 64}, "write")
    ids: list[uuid.UUID] = []
    for number, (name, secret) in enumerate(birds.items()):
        said = spoken(name, secret)
        text: dict[str, Any] = {"text": said, "deep": [{"er": said}]}
        tool = "write" if number % 2 else "echo"
        if number % 5 == 1:
            outside.fails = [ConnectorError("upstream_refused", said)]
        if number % 5 == 2:
            outside.fails = [RuntimeError(said)]
        if number % 5 == 3:
            text["text"] = 5  # refused, with a message
        if number % 5 == 4:
            tool = said[:60]
        reply = await post(
            gateway,
            modern("tools/call", {"name": tool, "arguments": text}),
            company.token,
            mcp_protocol_version="2026-07-28",
            mcp_method="tools/call",
            mcp_name="-" if number % 5 == 4 else tool,
            user_agent=said.encode("ascii", "ignore").decode(),
        )
        ids += [uuid.UUID(each) for each in _call_ids(reply)]
    assert len(ids) > 30

    def export() -> bytes:
        mine = Record.objects.filter(call_id__in=ids)
        assert mine.exclude(shown=None).count() > 10
        return b"".join(json_line(line) for page in pages(mine) for line in page)

    written = await in_thread(lambda: [*dump(), *cached()])
    written.append(("export", await in_thread(export)))
    stream = io.StringIO()
    stream.writelines(JsonFormatter().format(each) + "\n" for each in caplog.records)
    written.append(("log", stream.getvalue().encode()))
    found = {
        (place, name) for place, data in written for name, secret in birds.items() for n in needles(secret) if n in data
    }
    assert not found
    assert "[secret]" in stream.getvalue()


def _call_ids(reply: Any) -> Iterator[str]:
    body = orjson.loads(reply.body)
    meta = body.get("result", {}).get("_meta", {}) or body.get("error", {}).get("data", {}) or {}
    if "mcpsite/call" in meta:
        yield meta["mcpsite/call"]


async def test_a_failed_check_keeps_no_secret_of_its_source(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"canary-{secrets.token_hex(8)}"

    def fail(row: DataSource, ask: object) -> None:
        raise ConnectorError("upstream_refused", f"refused {secret}")

    monkeypatch.setattr("tools.sync._with_connector", fail)

    def check() -> DataSource:
        source = DataSource.objects.create(name="leaky", kind="mcp", secrets={"token": secret})
        assert check_source(source).message == "refused [secret]"
        return source

    assert (await in_thread(check)).check_message == "refused [secret]"
