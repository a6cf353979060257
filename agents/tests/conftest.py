"""A small company with an agent, and a worker that runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.db import connection

from access.models import Role, User
from agents.accounts import keep_account
from agents.models import Agent, ModelProvider, Run, Step
from agents.runs import start_run
from agents.worker import AgentWorker
from gateway.tests.conftest import Company, FakeConnector, company, in_thread, make_user, outside, until
from mcpsite.postgres import conninfo

__all__ = ["company", "in_thread", "outside", "until"]

ECHO = """
- call: echo
  with: {text: "{{ email }}"}
- say: "The echo says {{ echo }}."
"""


def make_provider(script: str = ECHO, **fields: Any) -> ModelProvider:
    return ModelProvider.objects.create(name=fields.pop("name", "script"), kind="scripted", script=script, **fields)


def make_agent(role: Role, provider: ModelProvider, **fields: Any) -> Agent:
    agent = Agent(
        name=fields.pop("name", "clerk-agent"), instructions="Be brief.", role=role, provider=provider, **fields
    )
    keep_account(agent, door="command")
    agent.save()
    return agent


@pytest.fixture
def starter(company: Company) -> User:
    return make_user("stella", company.role)


@pytest.fixture
def agent(company: Company) -> Agent:
    return make_agent(company.role, make_provider())


@pytest.fixture
async def worker(company: Company, outside: FakeConnector) -> AsyncIterator[AgentWorker]:
    worker = AgentWorker(conninfo(connection.settings_dict))
    worker.gateway.pipeline._connector = lambda tool: outside
    await worker.start()
    await until(worker.gateway.ready)
    yield worker
    await worker.stop()


async def queued(agent: Agent, starter: User, text: str = "Write to carla@example.com.") -> Run:
    return await in_thread(lambda: start_run(agent, text, starter=starter, door="rest"))


async def found(run: Run) -> Run:
    return await in_thread(lambda: Run.objects.select_related("agent").get(pk=run.pk))


async def steps_of(run: Run) -> list[Step]:
    return await in_thread(lambda: list(Step.objects.filter(run=run).order_by("number")))


async def ran(worker: AgentWorker, agent: Agent, starter: User, text: str = "Write to carla@example.com.") -> Run:
    """Queue a run, execute it, and return it as it ended."""
    run = await queued(agent, starter, text)
    await worker.execute(run.pk)
    return await found(run)
