"""The stdio transport against real processes: the official time server, and little servers that mean no good."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from django.conf import settings as django_settings

from tools.configuration import Refused, configure
from tools.connectors import limits, mcp_pipes, mcp_process, mcp_stdio
from tools.connectors.base import ConnectorError, Context, Source
from tools.connectors.mcp_messages import McpTool
from tools.connectors.mcp_stdio import McpStdioConnector, McpStdioOptions
from tools.egress import Egress
from tools.forms import fields_of
from tools.launchers import Launcher, read
from tools.models import DataSource
from tools.sync import check_source

ROOT = Path(__file__).resolve().parents[2]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

# What all the little servers have in common. They speak the modern era unless they say otherwise.
PRELUDE = """
import json, os, signal, sys, threading, time
def send(message):
    sys.stdout.write(json.dumps(message) + "\\n"); sys.stdout.flush()
def reply(message, result):
    send({"jsonrpc": "2.0", "id": message["id"], "result": {"resultType": "complete", **result}})
def refuse(message, code, text):
    send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": text}})
def say(message, text):
    reply(message, {"content": [{"type": "text", "text": text}]})
def log(text):
    sys.stderr.write(text + "\\n"); sys.stderr.flush()
def greet(message):
    method = message.get("method")
    if method == "server/discover":
        reply(message, {"supportedVersions": ["2026-07-28"], "serverInfo": {"name": "little"}})
    return method == "server/discover"
def messages():
    for line in sys.stdin:
        message = json.loads(line)
        if not greet(message):
            yield message
"""
ECHO = """
for message in messages():
    if "id" in message:
        say(message, json.dumps(message["params"].get("arguments")))
"""
LEGACY = """
def greet(message):
    method = message.get("method")
    if method == "server/discover":
        unknown(message)
    elif method == "initialize":
        reply(message, {"protocolVersion": "2025-06-18", "serverInfo": {"name": "old"}})
    elif method == "notifications/initialized":
        log("initialized")
    return method in ("server/discover", "initialize", "notifications/initialized")
"""


def little(script: str) -> Launcher:
    return Launcher(("python", "-S", "-c", PRELUDE + textwrap.dedent(script)))


Connect = Callable[..., McpStdioConnector]


@pytest.fixture
async def connect(settings) -> AsyncIterator[Connect]:
    """Makes connectors to the launcher `test`, and closes them."""
    made: list[McpStdioConnector] = []

    def connect(server: str | Launcher = ECHO, *, timeout: int = 10, **options: Any) -> McpStdioConnector:
        settings.MCP_LAUNCHERS = {"test": server if isinstance(server, Launcher) else little(server)}
        source = Source(uuid.uuid4(), "local", McpStdioOptions(launcher="test", **options), timeout)
        made.append(McpStdioConnector(source, Egress()))
        return made[-1]

    yield connect
    for connector in made:
        await connector.close()


async def call(connector: McpStdioConnector, tool: str = "echo", seconds: float = 10, **arguments: Any) -> str:
    result = await connector.call(McpTool(name=tool), arguments, Context(uuid.uuid4(), seconds, "canary", TRACE))
    text: str = result.content["content"][0]["text"]
    return text


async def failure(awaitable: Awaitable[Any]) -> ConnectorError:
    with pytest.raises(ConnectorError) as caught:
        await awaitable
    assert len(str(caught.value)) < 1_000
    return caught.value


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def there(path: str) -> bool:
    return os.path.exists(path)


def server_of(connector: McpStdioConnector) -> int:
    """The server itself, which is the guard's child."""
    guard = connector._server.pid
    return int(Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0])


# --- What it is for ---------------------------------------------------------------------------------------------------


async def test_the_official_time_server_is_understood(connect: Connect):
    connector = connect(read(json.loads(TIME))["time"])
    assert await connector.check() == "mcp-time answers with revision 2026-07-28."
    found = {offer.name: offer for offer in await connector.discover()}
    assert set(found) == {"get_current_time", "convert_time"}
    assert found["convert_time"].effect == "read"
    assert found["convert_time"].definition["inputSchema"]["required"]
    assert "Asia/Tokyo" in await call(connector, "get_current_time", timezone="Asia/Tokyo")
    result = await connector.call(McpTool(name="get_current_time"), {"timezone": "No/Where"}, context())
    assert result.is_error is True


TIME = '{"time": {"command": ["python", "-m", "mcp_server_time", "--local-timezone", "UTC"]}}'


def context(seconds: float = 10) -> Context:
    return Context(uuid.uuid4(), seconds, "someone", None)


def test_the_time_server_can_be_chosen_without_any_setting():
    assert django_settings.MCP_LAUNCHERS["time"].command == read(json.loads(TIME))["time"].command


async def test_one_process_serves_all_calls_side_by_side(connect: Connect):
    # It answers the last question first, so that only ids can tell whose answer is whose.
    connector = connect("""
        waiting = []
        for message in messages():
            waiting.append(message)
            if len(waiting) == 50:
                for each in reversed(waiting):
                    say(each, f"{os.getpid()} {each['params']['arguments']['n']}")
    """)
    answers = await asyncio.gather(*(call(connector, n=n) for n in range(50)))
    assert [answer.split()[1] for answer in answers] == [str(n) for n in range(50)]
    assert len({answer.split()[0] for answer in answers}) == 1


async def test_a_modern_request_says_all_that_it_must(connect: Connect):
    connector = connect("""
        for message in messages():
            say(message, json.dumps(message))
    """)
    sent = json.loads(await call(connector, a=1))
    meta = sent["params"].pop("_meta")
    assert sent["params"] == {"name": "echo", "arguments": {"a": 1}}
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert meta["traceparent"] == TRACE
    assert "canary" not in json.dumps([sent, meta])


@pytest.mark.parametrize(
    "unknown",
    [
        "refuse(message, -32601, 'Method not found')",
        "refuse(message, -32602, 'Invalid request parameters')",
        "pass",
        "os._exit(1)",
    ],
)
async def test_an_older_server_is_greeted_its_own_way(connect: Connect, monkeypatch, unknown):
    monkeypatch.setattr(mcp_stdio, "_PROBE_SECONDS", 1.0)
    connector = connect(f"{LEGACY}\ndef unknown(message): {unknown}\n{ECHO}")
    assert await connector.check() == "old answers with revision 2025-06-18."
    assert json.loads(await call(connector, a=[1])) == {"a": [1]}
    await until(lambda: connector._server.last_words == "initialized")


async def test_a_server_that_was_slow_to_answer_the_first_question_is_modern(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_stdio, "_PROBE_SECONDS", 0.3)
    connector = connect("""
        def greet(message):
            if message.get("method") == "server/discover":
                time.sleep(1)
                reply(message, {"supportedVersions": ["2026-07-28"]})
            elif message.get("method") == "initialize":
                refuse(message, -32022, "unsupported protocol version")
            else:
                return False
            return True
        for message in messages():
            say(message, json.dumps("_meta" in message["params"]))
    """)
    assert await call(connector) == "true"


@pytest.mark.parametrize("method", ["sampling/createMessage", "roots/list", "elicitation/create", "ping"])
async def test_what_the_server_asks_of_a_client_is_declined(connect: Connect, method):
    connector = connect(f"""
        for message in messages():
            if message.get("method") == "tools/call":
                asked = message
                send({{"jsonrpc": "2.0", "id": "q", "method": "{method}", "params": {{}}}})
            else:
                say(asked, json.dumps(message))
    """)
    answer = json.loads(await call(connector))
    assert answer["id"] == "q"
    assert answer["result"] == {} if method == "ping" else answer["error"]["code"] == -32601


# --- Answers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("reply(message, {})", "bad_upstream_answer"),
        ("reply(message, {'content': [], 'isError': 'no'})", "bad_upstream_answer"),
        ("send({'jsonrpc': '2.0', 'id': message['id']})", "bad_upstream_answer"),
        ("send({'jsonrpc': '2.0', 'id': message['id'], 'result': [1]})", "bad_upstream_answer"),
        ("refuse(message, -32602, 'x' * 100_000)", "upstream_refused"),
        ("reply(message, {'content': [], 'resultType': 'input_required'})", "bad_upstream_answer"),
    ],
)
async def test_an_answer_that_is_none_becomes_one_sentence(connect: Connect, answer, code):
    connector = connect(f"for message in messages():\n    {answer}")
    assert (await failure(call(connector))).code == code


async def test_lines_that_are_no_answer_to_anything_are_passed_over(connect: Connect):
    connector = connect("""
        print("Welcome to the server!")
        for message in messages():
            for line in ("", "null", "[1]", "{", "\\\\ud800", '{"id": 99999, "result": {}}',
                         '{"id": "1", "result": {}}', '{"id": null, "error": {"code": 1}}',
                         '{"method": "notifications/message", "params": {}}'):
                print(line)
            sys.stdout.buffer.write(b"\\xff\\xfe\\n"); sys.stdout.flush()
            say(message, "ok")
    """)
    assert await call(connector) == "ok"
    assert await call(connector) == "ok"


async def test_arguments_that_are_not_unicode_are_refused_before_they_are_sent(connect: Connect):
    connector = connect()
    await call(connector)
    error = await failure(call(connector, a="\ud800"))
    assert (error.code, error.sent) == ("invalid_arguments", False)
    assert json.loads(await call(connector, a=1)) == {"a": 1}


# --- Time -------------------------------------------------------------------------------------------------------------

TELLING = """
for message in messages():
    if message.get("method") == "notifications/cancelled":
        log(f"cancelled {message['params']['requestId']} {'id' in message}")
    elif message["params"]["arguments"].get("wait"):
        log(f"got {message['id']}")
    else:
        say(message, "ok")
"""


async def test_a_call_whose_deadline_passes_is_cancelled_at_the_server(connect: Connect):
    connector = connect(TELLING)
    assert await call(connector) == "ok"
    started = time.monotonic()
    error = await failure(call(connector, seconds=0.3, wait=True))
    assert time.monotonic() - started < 1
    assert (error.code, error.sent, error.retryable) == ("upstream_timeout", True, False)
    await until(lambda: "cancelled" in connector._server.last_words)
    got, cancelled = connector._server.last_words.split(" | ")
    assert cancelled == f"cancelled {got.split()[1]} False"
    assert await call(connector) == "ok"


async def test_a_call_that_is_broken_off_is_cancelled_at_the_server(connect: Connect):
    connector = connect(TELLING)
    task = asyncio.create_task(call(connector, wait=True))
    await until(lambda: "got" in connector._server.last_words)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: "cancelled" in connector._server.last_words)


async def test_large_answers_that_come_too_late_are_no_offence(connect: Connect):
    connector = connect("""
        for message in messages():
            if "id" in message:
                time.sleep(message["params"]["arguments"].get("wait", 0))
                say(message, "x" * 2_000_000)
    """)
    assert (await failure(call(connector, seconds=1, wait=1.5))).code == "upstream_timeout"
    pid = connector._server.pid
    assert len(await call(connector)) == 2_000_000
    assert connector._server.pid == pid


async def test_a_server_that_hangs_is_replaced(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_pipes, "_SILENT_SECONDS", 0.5)
    connector = connect("""
        for message in messages():
            if message.get("params", {}).get("arguments", {}).get("hang"):
                time.sleep(1000)
            elif "id" in message:
                say(message, str(os.getpid()))
    """)
    first = await call(connector)
    for _ in range(2):
        await failure(call(connector, seconds=0.3, hang=True))
    assert lives(int(first))
    await failure(call(connector, seconds=0.3, hang=True))
    assert connector._server.pid is None
    assert await call(connector) != first
    await until(lambda: not lives(int(first)))


async def test_a_start_outlives_the_call_that_began_it(connect: Connect):
    connector = connect(f"time.sleep(1)\n{ECHO}")
    started = time.monotonic()
    assert (await failure(call(connector, seconds=0.2))).code == "upstream_timeout"
    assert time.monotonic() - started < 0.8
    pid = connector._server.pid
    assert await call(connector) == "{}"
    assert connector._server.pid == pid


async def test_a_server_that_answers_nothing_is_given_up_and_told(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_stdio, "_START_SECONDS", 0.5)
    connector = connect("time.sleep(1000)")
    error = await failure(call(connector))
    assert (error.code, str(error), error.sent) == ("upstream_timeout", "The server was not ready within 0.5 s.", False)
    assert connector._server.pid is None


# --- The end of a process, and the next one ---------------------------------------------------------------------------


async def test_calls_under_way_fail_when_the_server_dies_and_the_next_one_finds_a_new_one(connect: Connect):
    connector = connect("""
        for message in messages():
            if message["params"]["arguments"].get("die"):
                log("no more")
                os._exit(3)
            elif not message["params"]["arguments"].get("wait"):
                say(message, str(os.getpid()))
    """)
    first = await call(connector)
    waiting = asyncio.create_task(failure(call(connector, wait=True)))
    await asyncio.sleep(0)
    error = await failure(call(connector, die=True))
    assert str(error) == str(await waiting) == "The server ended with exit code 3 before it answered."
    assert (error.code, error.sent, error.retryable) == ("upstream_unavailable", True, True)
    assert await call(connector) != first


async def test_the_last_answer_of_a_server_that_ends_is_not_lost(connect: Connect):
    connector = connect("""
        for message in messages():
            say(message, "x" * 3_000_000)
            os._exit(0)
    """)
    assert len(await call(connector)) == 3_000_000


async def test_a_server_that_is_killed_is_told_as_such(connect: Connect):
    connector = connect(TELLING)
    await call(connector)
    waiting = asyncio.create_task(failure(call(connector, wait=True)))
    await until(lambda: "got" in connector._server.last_words)
    os.kill(server_of(connector), signal.SIGSEGV)
    assert str(await waiting) == "The server was killed by SIGSEGV before it answered."


async def test_whoever_keeps_the_connector_hears_that_its_server_starts_and_ends(connect: Connect):
    connector, heard = connect(TELLING), list[tuple[str, dict[str, Any]]]()
    connector.tell = lambda code, detail: heard.append((code, detail))
    await call(connector)
    pid = connector._server.pid
    os.kill(server_of(connector), signal.SIGSEGV)
    await until(lambda: connector._server.pid is None)
    await call(connector)
    await connector.close()
    assert [code for code, _ in heard] == ["server_started", "server_ended", "server_started", "server_stopped"]
    assert heard[0][1] == {"launcher": "test", "pid": pid, "failures_before": 0}
    assert (heard[1][1]["pid"], heard[1][1]["how"]) == (pid, "was killed by SIGSEGV")
    assert heard[2][1]["failures_before"] == 1


async def test_a_crash_loop_does_not_spin_and_calls_fail_at_once(connect: Connect, tmp_path):
    starts = tmp_path / "starts"
    connector = connect(f"open({str(starts)!r}, 'a').write('x'); log('Traceback: no licence'); sys.exit(1)")
    began = time.monotonic()
    errors = [await failure(call(connector)) for _ in range(200)]
    assert time.monotonic() - began < 8
    # One start to ask the modern question and one for older servers; then the pauses begin.
    assert len(starts.read_text()) <= 4
    assert {(error.code, error.sent) for error in errors} == {("upstream_unavailable", False)}
    assert str(errors[0]) == "The server ended with exit code 1 before it answered."
    assert str(errors[-1]).startswith("The server failed 2 times in a row: it ended with exit code 1.")
    assert not any(error.retryable for error in errors)


async def test_after_the_pause_a_mended_server_is_found(connect: Connect, tmp_path, monkeypatch):
    monkeypatch.setattr(mcp_pipes, "_PAUSES_SECONDS", (0.0, 0.5))
    mended = tmp_path / "mended"
    connector = connect(f"if not os.path.exists({str(mended)!r}): sys.exit(1)\n{ECHO}")
    await failure(call(connector))
    mended.touch()
    assert "again in" in str(await failure(call(connector)))
    await asyncio.sleep(0.6)
    assert await call(connector) == "{}"


async def test_pauses_grow_and_end_with_a_healthy_run(connect: Connect, monkeypatch):
    connector = connect("for message in messages(): os._exit(1)")
    noted, pauses = connector._server.pauses, []
    for _ in range(6):
        await failure(call(connector))
        pauses.append(noted.not_before - asyncio.get_running_loop().time())
        noted.not_before = 0
    assert [round(max(0, pause)) for pause in pauses] == [0, 1, 2, 4, 8, 16]
    monkeypatch.setattr(mcp_pipes, "_HEALTHY_SECONDS", 0)
    await failure(call(connector))
    assert noted.failures == 1


async def test_an_idle_server_is_stopped_and_comes_back(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_pipes, "_IDLE_SECONDS", 0.3)
    connector = connect("for message in messages():\n    if 'id' in message: say(message, str(os.getpid()))")
    first = int(await call(connector))
    await until(lambda: not lives(first))
    assert connector._server.pid is None
    assert int(await call(connector)) != first
    assert connector._server.pauses.failures == 0


async def test_a_server_with_calls_under_way_is_not_idle(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_pipes, "_IDLE_SECONDS", 0.1)
    connector = connect("for message in messages():\n    time.sleep(0.8); say(message, 'ok')")
    assert await call(connector) == "ok"


async def test_a_closed_connector_stays_closed_and_leaves_nothing(connect: Connect):
    connector = connect("for message in messages():\n    say(message, f'{os.getpid()} {os.getcwd()}')")
    pid, home = (await call(connector)).split()
    assert there(home)
    await connector.close()
    assert not lives(int(pid))
    assert not there(home)
    for use in (call(connector), connector.check(), connector.discover()):
        error = await failure(use)
        assert ("The connector is closed." in str(error), error.sent) == (True, False)


async def test_closing_breaks_off_a_start(connect: Connect):
    connector = connect("time.sleep(1000)")
    waiting = asyncio.create_task(call(connector))
    await until(lambda: len(family_of(connector._server.pid or 0)) == 2)
    family = family_of(connector._server.pid or 0)
    await connector.close()
    assert not [pid for pid in family if lives(pid)]
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_check_tells_what_the_server_said_last(connect: Connect):
    connector = connect("log('Reading the settings'); log('\\x1b[31mAPI_KEY\\tis missing\\x1b[0m'); sys.exit(2)")
    said = str(await failure(connector.check()))
    assert said.startswith("The server ended with exit code 2 before it answered. Its last words: Reading the settings")
    assert "API_KEY is missing" in said
    assert "\x1b" not in said
    assert "API_KEY" not in str(await failure(call(connector)))


async def test_a_program_that_is_not_there_is_told(connect: Connect):
    said = str(await failure(connect(Launcher(("/nowhere/server",))).check()))
    assert "/nowhere/server cannot be started" in said
    assert "No such file or directory" in said


async def test_the_end_is_in_the_log_with_the_name_of_the_source(connect: Connect, caplog):
    connector = connect("log('out of luck'); sys.exit(1)")
    with caplog.at_level(logging.WARNING, "tools.connectors.mcp_stdio"):
        await failure(call(connector))
    assert "the server of local ended with exit code 1. Its last words: out of luck" in caplog.text


# --- Servers that mean no good ----------------------------------------------------------------------------------------


async def test_a_flood_on_stderr_neither_blocks_calls_nor_fills_memory(connect: Connect):
    connector = connect(f"""
def flood():
    while True:
        os.write(2, b"x" * 50 + b"\\n" + b"y" * 65000)
threading.Thread(target=flood, daemon=True).start()
{ECHO}""")
    await call(connector)
    spent, began = time.process_time(), time.monotonic()
    while time.monotonic() - began < 1.5:
        assert json.loads(await call(connector, a=1)) == {"a": 1}
        await asyncio.sleep(0.05)
    assert time.process_time() - spent < 0.75
    process = connector._server._last
    assert process is not None
    assert len(process.last_words) <= 51
    assert max(map(len, process.last_words)) <= 300


@pytest.mark.parametrize(
    "line", ["not json", '{"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x"}}', ""]
)
async def test_a_flood_on_stdout_ends_the_server(connect: Connect, line):
    connector = connect(f"""
        for message in messages():
            while True:
                print({line!r})
    """)
    spent = time.process_time()
    error = await failure(call(connector))
    assert error.code == "upstream_unavailable"
    assert "writes without end what it was not asked for" in str(error)
    assert time.process_time() - spent < 1


async def test_questions_without_end_are_not_answered_without_end(connect: Connect):
    connector = connect("""
        for message in messages():
            while True:
                send({"jsonrpc": "2.0", "id": 1, "method": "roots/list"})
    """)
    assert "writes without end" in str(await failure(call(connector)))


@pytest.mark.parametrize("end", ["", "\\n"])
async def test_a_message_without_end_is_cut(connect: Connect, monkeypatch, end):
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 1_000_000)
    connector = connect(f"""
        for message in messages():
            if "id" in message:
                sys.stdout.write('{{"jsonrpc": "2.0", "id": 2, "result": "')
                while True:
                    sys.stdout.write("x" * 3_000_000 + "{end}")
    """)
    error = await failure(call(connector))
    assert (error.code, error.retryable) == ("result_too_large", False)
    assert "sent a message of more than 1000000 bytes" in str(error)
    assert connector._server.pid is None


async def test_a_server_that_does_not_read_is_not_fed_without_end(connect: Connect, monkeypatch):
    monkeypatch.setattr(mcp_process, "_MOST_UNSENT", 1_000_000)
    connector = connect("next(messages(), None); time.sleep(1000)")
    await failure(call(connector, seconds=1))
    big = "x" * 600_000
    errors = await asyncio.gather(*(failure(call(connector, seconds=0.5, big=big)) for _ in range(10)))
    codes = [error.code for error in errors]
    assert codes.count("upstream_timeout") <= 3
    assert codes.count("upstream_busy") >= 7
    assert {error.sent for error in errors if error.code == "upstream_busy"} == {False}


async def test_more_calls_than_allowed_are_refused_unsent(connect: Connect):
    connector = connect(TELLING, max_calls=2)
    await call(connector)
    waiting = [asyncio.create_task(failure(call(connector, seconds=1, wait=True))) for _ in range(2)]
    await asyncio.sleep(0)
    error = await failure(call(connector))
    assert (error.code, error.sent) == ("upstream_busy", False)
    await asyncio.gather(*waiting)
    assert await call(connector) == "ok"


FORKING = """
def child(*steps):
    if os.fork() == 0:
        for step in steps:
            step()
        os.close(1); time.sleep(1000); os._exit(0)
def detach():
    os.setsid()
    if os.fork(): os._exit(0)
def deaf():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
child(); child(deaf); child(os.setsid, deaf); child(detach, deaf)
deaf()
time.sleep(0.3)
"""


def family_of(guard: int) -> set[int]:
    """Everybody below the guard, who inherits those that were detached."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    below = {guard}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below


async def test_children_of_the_server_end_with_it_whatever_they_did_to_stay(connect: Connect):
    connector = connect(FORKING + ECHO)
    await call(connector)
    family = family_of(connector._server.pid or 0)
    assert len(family) == 6
    began = time.monotonic()
    await connector.close()
    assert time.monotonic() - began < 5
    assert not [pid for pid in family if lives(pid)]


async def test_children_of_a_server_that_dies_end_with_it(connect: Connect):
    connector = connect(FORKING + "for message in messages(): os._exit(1)")
    await connector.check()
    family = family_of(connector._server.pid or 0)
    assert len(family) == 6
    assert "exit code 1" in str(await failure(call(connector)))
    await until(lambda: not [pid for pid in family if lives(pid)], 4)


@pytest.mark.parametrize("make_loop", [None, uvloop.new_event_loop])
def test_a_server_that_closes_its_output_is_found_out_at_once_under_either_event_loop(settings, make_loop):
    async def main() -> ConnectorError:
        connector = McpStdioConnector(Source(uuid.uuid4(), "local", McpStdioOptions(launcher="test"), 10), Egress())
        try:
            return await failure(call(connector, seconds=5))
        finally:
            await connector.close()

    closing = little("for m in messages():\n    os.close(1)\n    time.sleep(60)\n")
    settings.MCP_LAUNCHERS = {"test": closing}
    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert "closed its input or output" in str(runner.run(main()))


async def test_a_server_that_will_not_end_is_killed(connect: Connect):
    connector = connect(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{ECHO}\nwhile True: time.sleep(1)")
    await call(connector)
    server, began = server_of(connector), time.monotonic()
    await connector.close()
    assert time.monotonic() - began < 5
    assert not there(f"/proc/{server}")  # nor does a zombie of it stay for whoever has process number 1


async def test_a_polite_server_is_given_the_time_to_end_by_itself(connect: Connect, tmp_path):
    farewell = tmp_path / "farewell"
    connector = connect(f"{ECHO}\ntime.sleep(0.2); open({str(farewell)!r}, 'w').write('bye')")
    await call(connector)
    await connector.close()
    assert farewell.read_text() == "bye"


HOST = """
import asyncio, os, sys, uuid
os.environ["DJANGO_SETTINGS_MODULE"] = "mcpsite.settings"
import django; django.setup()
from django.conf import settings
from tools.connectors.base import Context, Source
from tools.connectors.mcp_messages import McpTool
from tools.connectors.mcp_stdio import McpStdioConnector, McpStdioOptions
from tools.egress import Egress
from tools.launchers import Launcher
async def main():
    settings.MCP_LAUNCHERS = {"test": Launcher(("python", "-S", "-c", sys.argv[1]))}
    connector = McpStdioConnector(Source(uuid.uuid4(), "x", McpStdioOptions(launcher="test"), 10), Egress())
    await connector.call(McpTool(name="echo"), {}, Context(uuid.uuid4(), 10, "x"))
    print(connector._server.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["site", "guard"])
async def test_nothing_outlives_a_kill_9(victim):
    script = PRELUDE + (FORKING if victim == "site" else "") + ECHO
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, script, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        guard = int(await host.stdout.readline())
        family = family_of(guard)
        assert len(family) == (6 if victim == "site" else 2)
        home = os.readlink(f"/proc/{max(family)}/cwd")
        os.kill(host.pid if victim == "site" else guard, signal.SIGKILL)
        await until(lambda: not [pid for pid in family if lives(pid)], 5)
        await until(lambda: not there(home), 3)
    finally:
        if host.returncode is None:
            host.kill()
        await host.wait()


# --- What the server is given -----------------------------------------------------------------------------------------


async def test_the_server_sees_nothing_of_ours(connect: Connect, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "canary")
    monkeypatch.setenv("PGPASSWORD", "canary")
    launcher = little("""
        import resource
        for message in messages():
            say(message, json.dumps({
                "environment": dict(os.environ), "cwd": os.getcwd(), "fds": sorted(os.listdir("/proc/self/fd")),
                "session": os.getsid(0) == os.getpid(), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
                "data": resource.getrlimit(resource.RLIMIT_DATA), "core": resource.getrlimit(resource.RLIMIT_CORE),
                "umask": os.umask(0), "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                "pipe": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
                "privileges": [line for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
            }))
    """)
    wanted = {"GREETING": "hello", "LANG": "de_DE.UTF-8"}
    own = Launcher(launcher.command, environment=wanted, memory_mb=300, open_files=99)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    found = json.loads(await call(connect(own)))
    os.close(descriptor)
    seen = found["environment"]
    assert set(seen) - {"LC_CTYPE"} == {"PATH", "LANG", "HOME", "TMPDIR", "GREETING"}
    assert (seen["GREETING"], seen["LANG"]) == ("hello", "de_DE.UTF-8")
    assert found["cwd"] == seen["HOME"] == seen["TMPDIR"] != os.getcwd()
    # The fourth is that of the listing itself.
    assert found["fds"] == ["0", "1", "2", "3"]
    assert found["files"] == [99, 99]
    assert found["data"] == [300 * 1024 * 1024] * 2
    assert found["core"] == [0, 0]
    assert (found["session"], found["umask"], found["blocked"]) == (True, 0o077, 0)
    assert found["privileges"] == ["NoNewPrivs:\t1\n"]


async def test_a_server_that_takes_ten_gigabytes_hurts_only_itself(connect: Connect):
    greedy = little("""
        for message in messages():
            try:
                kept = [bytearray(100_000_000) for _ in range(100)]
            except MemoryError:
                say(message, "refused")
    """)
    assert await call(connect(Launcher(greedy.command, memory_mb=250))) == "refused"


# --- Which servers may run --------------------------------------------------------------------------------------------


def test_only_what_the_settings_allow_can_be_saved(settings):
    settings.MCP_LAUNCHERS = {"one": Launcher(("a",)), "two": Launcher(("b",), "The second.")}
    source = DataSource(kind="mcp-stdio")
    configure(source, {"launcher": "one"}, {})
    assert source.options == {"launcher": "one", "max_calls": 100, "hears_changes": True, "max_sessions": 4}
    for wrong in ("three", "a", "/bin/sh", "one; id", ""):
        with pytest.raises(Refused) as caught:
            configure(source, {"launcher": wrong}, {})
        assert set(caught.value.errors) == {"launcher"}
    with pytest.raises(Refused, match="it allows: one, two"):
        configure(source, {"launcher": "three"}, {})
    for unknown in ("command", "args", "env", "cwd"):
        with pytest.raises(Refused, match="Extra inputs are not permitted"):
            configure(source, {"launcher": "one", unknown: ["sh"]}, {})


def test_the_form_offers_the_launchers_of_the_settings(settings):
    settings.MCP_LAUNCHERS = {"one": Launcher(("a",)), "two": Launcher(("b",), "The second.")}
    field: Any = fields_of(McpStdioOptions, {}, set())["option_launcher"]
    assert field.choices == [("one", "one"), ("two", "two")]
    assert "<code>two</code>: The second." in field.help_text


async def test_a_launcher_that_was_taken_away_is_told_by_the_calls(connect: Connect, settings):
    connector = connect()
    settings.MCP_LAUNCHERS = {}
    error = await failure(call(connector))
    assert (error.code, error.sent, error.retryable) == ("upstream_unavailable", False, False)
    assert str(error) == "The launcher 'test' is no longer allowed: an administrator must choose another one."
    McpStdioOptions.model_validate({"launcher": "gone"})  # the row can still be read


def test_a_check_runs_the_server_and_stops_it(db, settings):
    settings.MCP_LAUNCHERS = {"test": little(ECHO), "bad": little("log('no licence'); sys.exit(7)")}
    before = family_of(os.getpid())
    row = DataSource.objects.create(name="local", kind="mcp-stdio", options={"launcher": "test"})
    assert check_source(row).message == "little answers with revision 2026-07-28."
    DataSource.objects.filter(pk=row.pk).update(options={"launcher": "bad"})
    row.refresh_from_db()
    assert not check_source(row).ok
    assert row.check_message == "The server ended with exit code 7 before it answered. Its last words: no licence"
    assert family_of(os.getpid()) == before
