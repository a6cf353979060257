"""`manage.py run_agent`, with a worker beside it."""

from __future__ import annotations

import asyncio
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from access.models import User
from agents.models import Run
from agents.tests.conftest import in_thread, until
from agents.toolkit import offered_names

pytestmark = pytest.mark.usefixtures("company")


async def test_it_prints_steps_with_their_records_and_the_answer(worker, agent, starter):
    out = StringIO()
    await in_thread(lambda: User.objects.create_superuser("root"))
    told = asyncio.create_task(
        asyncio.to_thread(call_command, "run_agent", agent.name, "Mail a@example.com", stdout=out)
    )
    runs: list[Run] = []
    while not runs:
        runs = await in_thread(lambda: list(Run.objects.all()))
    await until(lambda: not told.done())
    await worker.execute(runs[0].pk)
    await told
    lines = out.getvalue().splitlines()
    assert lines[0] == f"run {runs[0].pk}"
    assert lines[1].startswith("  1  model asks for echo, record ")
    assert lines[2].startswith('  2  echo {"text": "a@example.com"}  ok, record ')
    assert lines[-1] == "The echo says a@example.com."


def test_who_and_what_must_be_there(agent):
    with pytest.raises(CommandError, match="no active superuser"):
        call_command("run_agent", agent.name, "Go.")
    with pytest.raises(CommandError, match="no active user 'nobody'"):
        call_command("run_agent", agent.name, "Go.", "--as", "nobody")
    with pytest.raises(CommandError, match="no agent 'nothing'"):
        call_command("run_agent", "nothing", "Go.", "--as", "carla")
    with pytest.raises(CommandError, match="Say what the agent shall do"):
        call_command("run_agent", agent.name, " ", "--as", "carla")


def test_names_that_providers_do_not_take_are_exchanged_and_can_be_told_back():
    names = ["get_order", "9lives", "a.b", "a_b", "x" * 80, "-dash"]
    offered = offered_names(names)
    assert offered["get_order"] == "get_order"
    assert sorted(offered.values()) == sorted(names)
    assert len(offered) == len(names)
    assert all(len(name) <= 64 and not name.startswith("-") for name in offered)
