import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bench.load import Job, LoadError, Result, Run, problem
from bench.measure import Measurement
from bench.processes import Group, Stage, free_port, python, stop, tree
from bench.report import goals, goals_table, ledger_table, medians, table

RIGHT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"call 7"}]}}'


@pytest.fixture(scope="module")
def echo_port(tmp_path_factory) -> Iterator[int]:
    port = free_port()
    with Stage(tmp_path_factory.mktemp("bench")) as stage:
        stage.start("echo", *python("bench.echo", "--port", str(port)))
        stage.wait("echo", port, 30)
        yield port


def load(job: Job) -> Result:
    async def run() -> Result:
        calls = Run(job)
        try:
            await calls.connect()
            return await calls.calls(job.seconds)
        finally:
            calls.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_the_echo_server_answers_every_call_of_the_load_generator(echo_port, era):
    result = load(Job(port=echo_port, connections=4, seconds=0.3, era=era))
    assert result.calls > 4
    assert result.failures == 0, result.examples
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms


@contextmanager
def a_server_that_says(answer: bytes) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)
                if answer:
                    connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_one_wrong_answer_fails_the_measurement():
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(RIGHT)
    with a_server_that_says(head + RIGHT) as port:
        result = load(Job(port=port, seconds=0.1))
    assert (result.calls, result.failures) == (1, 1)
    assert "a wrong answer to call 100000000" in result.examples[0]


def test_a_lost_connection_fails_the_measurement():
    with a_server_that_says(b"") as port, pytest.raises(LoadError, match="connection was lost"):
        load(Job(port=port, seconds=0.1))


@pytest.mark.parametrize(
    ("status", "body", "sse"),
    [
        (200, RIGHT.replace(b"call 7", b"call 8"), False),
        (200, RIGHT.replace(b'"id":7', b'"id":8'), False),
        (200, RIGHT.replace(b'"content"', b'"isError":true,"content"'), False),
        (200, b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"Unknown tool"}}', False),
        (200, b"data: " + RIGHT.replace(b"call 7", b"call 8") + b"\n\n", True),
        (200, b"", False),
        (200, b"", True),
        (503, RIGHT, False),
    ],
)
def test_whatever_is_not_the_right_answer_is_a_problem(status, body, sse):
    assert problem(7, status, body, sse)


@pytest.mark.parametrize(
    "body", [b"data: %s\n\n", b"event: message\r\ndata: %s\r\n\r\n", b': ping\n\ndata: {"method":"x"}\n\ndata:%s\n\n']
)
def test_an_answer_may_come_as_server_sent_events(body):
    assert problem(7, 200, body.replace(b"%s", RIGHT), True) is None


def test_the_cpu_time_of_children_counts_and_that_of_engines_stands_apart(tmp_path):
    engine = tmp_path / "valkey-server"
    engine.symlink_to(Path(sys.executable).resolve())
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nimport sys; sys.stdin.read()"
    children = [
        subprocess.Popen([program, "-S", "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for program in (sys.executable, str(engine))
    ]
    try:
        for child in children:
            assert child.stdout
            child.stdout.readline()
        groups = tree(os.getpid())
    finally:
        for child in children:
            stop(child)
    assert children[0].pid in {process.pid for process in groups[Group.OWN]}
    # The engines of the test session itself are among our children as well.
    engines = {process.pid: process for process in groups[Group.VALKEY]}
    assert engines[children[1].pid].cpu_ms >= 190


def measured(target: str, connections: int, cpu_ms: float) -> Measurement:
    figures: dict[str, Any] = {field.name: cpu_ms for field in fields(Measurement)}
    return Measurement(**figures | {"target": target, "connections": connections, "calls": 100})


def test_goals_are_judged_by_medians_and_named_when_not_measured():
    rounds = [measured("mcpsite", 1, cpu_ms) for cpu_ms in (0.3, 0.2, 9.0)] + [measured("fastmcp", 1, 10.0)]
    results = medians(rounds)
    verdicts = {goal.work: (goal.value and round(goal.value, 1), goal.verdict) for goal in goals(results)}
    assert verdicts["CPU ms of a call, c=1"] == (0.3, "reached")
    assert verdicts["times less CPU than FastMCP's proxy, c=1"] == (33.3, "MISSED")
    assert verdicts["CPU ms of a call, c=32"] == (None, "not measured")
    assert "MISSED" in goals_table(goals(results))
    assert table(results).splitlines()[2].startswith("| mcpsite | 1 |   300 |  0.300 |")


def test_the_cost_of_the_ledger_is_what_calls_cost_more_with_it():
    on, off = measured("mcpsite", 1, 0.45), measured("mcpsite-unrecorded", 1, 0.25)
    assert ledger_table(medians([on])) == ""
    results = medians([on, off, measured("mcpsite", 8, 0.3)])
    assert [line.split(" | ")[0].strip("| ") for line in ledger_table(results).splitlines()[2:]] == ["c=1"]
    assert ledger_table(results).splitlines()[2].count("0.200") == 6
    added = {goal.work: goal for goal in goals(results)}["CPU ms that the ledger adds to a call, c=1"]
    assert (round(added.value or 0, 3), added.verdict) == (0.2, "reached")


def test_a_list_is_right_when_it_begins_with_the_tool_that_is_called():
    listed = b'{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"echo"},{"name":"other_001"}]}}'
    assert problem(7, 200, listed, False, lists=True) is None
    for wrong in (listed.replace(b'"echo"', b'"other"'), b'{"id":7,"result":{"tools":[]}}', listed.replace(b"7", b"8")):
        assert problem(7, 200, wrong, False, lists=True)
