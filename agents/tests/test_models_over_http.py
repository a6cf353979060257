"""Agents whose model is a real server: what is asked, what comes back, and what a hostile server can do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents.journal import stored
from agents.models import Agent, ModelProvider
from agents.tests import llm_server
from agents.tests.conftest import in_thread, make_agent, ran, steps_of
from agents.tests.llm_server import LanguageModelServer, calls, says, serving
from tools.models import EgressRule

pytestmark = pytest.mark.usefixtures("company")

KEY = "sk-a-key-that-nobody-sees"


async def asking(company: Any, server: LanguageModelServer, allow: bool = True, **limits: Any) -> Agent:
    """An agent whose model is at that server."""

    def make() -> Agent:
        if allow:
            EgressRule.objects.create(network="127.0.0.1/32", note="the model")
        fields = {name: limits.pop(name) for name in ("timeout_seconds", "temperature") if name in limits}
        provider = ModelProvider.objects.create(
            name="llm", kind="openai", model="m-1", base_url=server.url, secrets={"api_key": KEY}, **fields
        )
        return make_agent(company.role, provider, **limits)

    return await in_thread(make)


async def test_a_model_is_asked_with_instructions_task_tools_and_key(worker, company, starter, outside):
    async with serving(calls("echo", '{"text": "hello"}'), says("It says hello.")) as server:
        agent = await asking(company, server, temperature=0.2)
        run = await ran(worker, agent, starter, "Say hello.")
    assert (run.status, run.output.strip()) == ("succeeded", "It says hello.")
    first, second = server.requests
    assert [(each["role"], each["content"]) for each in first["messages"]] == [
        ("system", "Be brief."), ("user", "Say hello.")
    ]  # fmt: skip
    assert [each["function"]["name"] for each in first["tools"]] == ["echo", "write"]
    assert first["tools"][0]["function"]["parameters"]["required"] == ["text"]
    assert (first["model"], first["temperature"], first["stream"]) == ("m-1", 0.2, True)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert second["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "hello"}
    assert outside.calls == [{"text": "hello"}]


async def test_tokens_are_counted_as_the_server_says(worker, company, starter):
    async with serving(calls("echo", '{"text": "a"}'), says("Done.")) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.input_tokens, run.output_tokens, run.tokens_estimated) == (200, 40, False)
    assert [(step.input_tokens, step.output_tokens) for step in await steps_of(run)] == [(100, 20), (0, 0), (100, 20)]


async def test_tokens_are_estimated_where_the_server_does_not_count(worker, company, starter):
    async with serving(says("Four letters make a token."), counts=False) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert run.tokens_estimated
    assert 5 < run.output_tokens < 10


async def test_a_run_ends_when_its_tokens_are_used_up(worker, company, starter, outside):
    replies = [calls("echo", '{"text": "a"}', f"call_{number}") for number in range(9)]
    async with serving(*replies) as server:
        run = await ran(worker, await asking(company, server, max_tokens=300), starter)
    assert (run.status, run.code, len(outside.calls)) == ("failed", "token_limit", 3)


@pytest.mark.parametrize("arguments", ['{"text": "cut o', '{"text": broken}', "echo it"])
async def test_arguments_that_cannot_be_read_never_reach_a_tool(worker, company, starter, outside, arguments):
    """LangChain completes JSON that was cut off; a tool would be called with half of an argument."""
    async with serving(calls("echo", arguments)) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, run.code, outside.calls) == ("failed", "bad_model_answer", [])


async def test_an_argument_may_have_any_name(worker, company, starter, outside):
    """LangChain takes `config`, `runtime` and `callbacks` for its own, if it is let."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in ("config", "runtime", "callbacks")}}

    def offer() -> None:
        from tools.definitions import publish

        publish(company.tools["echo"], {"name": "echo", "description": "Echo.", "inputSchema": schema})

    await in_thread(offer)
    arguments = '{"config": "a", "runtime": "b", "callbacks": "c"}'
    async with serving(calls("echo", arguments), says("Done.")) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert run.status == "succeeded"
    assert outside.calls == [{"config": "a", "runtime": "b", "callbacks": "c"}]


async def test_an_inside_address_needs_an_egress_rule(worker, company, starter):
    async with serving(says("You reached me.")) as server:
        run = await ran(worker, await asking(company, server, allow=False), starter)
    assert (run.status, run.code) == ("failed", "egress_denied")
    assert "an administrator must allow it" in run.message
    assert server.requests == []


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (llm_server.hangs, "model_timeout"),
        (llm_server.floods, "bad_model_answer"),
        (llm_server.compresses, "bad_model_answer"),
        (llm_server.talks_garbage, "model_failed"),
        (llm_server.says_nothing, "model_failed"),
        (llm_server.echoes_the_key, "model_failed"),
        (llm_server.sends_elsewhere, "model_failed"),
        (llm_server.drips, "time_limit"),
    ],
)
async def test_a_hostile_server_fails_the_run_and_no_more(worker, company, starter, behaviour, code):
    async with serving(misbehave=behaviour) as server:
        agent = await asking(company, server, timeout_seconds=1, max_seconds=6)
        run = await ran(worker, agent, starter)
    assert (run.status, run.code) == ("failed", code), run.message
    assert KEY not in run.message
    assert len(server.requests) <= 2


async def test_nobody_there_is_a_plain_sentence(worker, company, starter):
    async with serving() as server:
        agent = await asking(company, server)
    run = await ran(worker, agent, starter)
    assert (run.status, run.code) == ("failed", "model_unavailable")


@pytest.mark.parametrize(
    ("kind", "package"), [("anthropic", "langchain-anthropic"), ("mistralai", "langchain-mistralai")]
)
async def test_a_provider_whose_package_is_missing_says_what_to_install(worker, company, starter, kind, package):
    def make() -> Agent:
        provider = ModelProvider.objects.create(name="llm", kind=kind, model="m", secrets={"api_key": KEY})
        return make_agent(company.role, provider)

    run = await ran(worker, await in_thread(make), starter)
    assert (run.code, package in run.message) == ("model_not_installed", True)


@pytest.mark.parametrize("behaviour", [None, llm_server.echoes_the_key])
async def test_a_provider_is_tested_by_asking_it(worker, company, behaviour):
    async with serving(says("ready"), misbehave=behaviour) as server:
        agent = await asking(company, server)
        assert await worker.test_provider(agent.provider_id) is (behaviour is None)
    provider = await stored(ModelProvider.objects.get)
    assert provider.check_ok is (behaviour is None)
    assert KEY not in provider.check_message
    assert ("ready" in provider.check_message) is (behaviour is None)


async def test_a_failure_that_cannot_be_stored_as_it_is_still_ends_the_run_at_once(worker, company, starter):
    async with serving(misbehave=llm_server.fails_with_control_characters) as server:
        agent = await asking(company, server)
        async with asyncio.timeout(5):
            run = await ran(worker, agent, starter)
        assert not await worker.test_provider(agent.provider_id)
    assert (run.status, run.code) == ("failed", "model_failed")
    provider = await stored(ModelProvider.objects.get)
    for message in (run.message, provider.check_message):
        assert "such" in message
        assert message.isprintable()


async def test_no_part_of_the_key_is_told_where_a_reason_is_cut(worker, company, starter):
    async with serving(misbehave=llm_server.hides_the_key_at_the_cut) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert run.code == "model_failed"
    assert KEY[:6] not in run.message


async def test_what_is_no_text_is_a_bad_answer(worker, company, starter):
    async with serving(misbehave=llm_server.says_half_a_character) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, run.code) == ("failed", "bad_model_answer"), run.message


async def test_a_number_that_json_cannot_carry_is_a_bad_answer(worker, company, starter, outside):
    async with serving(calls("echo", '{"text": 100000000000000000000000000}')) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, run.code, outside.calls) == ("failed", "bad_model_answer", []), run.message


async def test_whatever_id_the_model_gives_a_call_its_step_is_kept(worker, company, starter, outside):
    async with serving(calls("echo", '{"text": "a"}', "call\x00_1"), says("Done.")) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, outside.calls) == ("succeeded", [{"text": "a"}]), run.message
    assert [step.tool for step in await steps_of(run)] == ["", "echo", ""]


async def test_no_count_of_tokens_is_too_large_to_be_limited(worker, company, starter, outside):
    usage = {"prompt_tokens": 10**30, "completion_tokens": 10**30, "total_tokens": 10**30}
    async with serving(calls("echo", '{"text": "a"}'), says("Done."), usage=usage) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, run.code, len(outside.calls)) == ("failed", "token_limit", 1), run.message


async def test_what_the_model_is_sent_counts_also_where_the_server_does_not_count(worker, company, starter):
    async with serving(says("Done."), counts=False) as server:
        run = await ran(worker, await asking(company, server), starter, "word " * 400)
    assert run.tokens_estimated
    assert 500 <= run.input_tokens < 600


@pytest.mark.parametrize(
    "arguments", ["[1, 2]", '"text"', "null", "7", "[" * 5000, '{"text": NaN}', '{"text": "\\ud800"}']
)
async def test_arguments_that_are_no_object_never_reach_a_tool(worker, company, starter, outside, arguments):
    async with serving(calls("echo", arguments), says("ok")) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, run.code, outside.calls) == ("failed", "bad_model_answer", []), run.message


async def test_a_tool_that_does_not_exist_calls_nothing(worker, company, starter, outside):
    async with serving(calls("__class__", "{}"), says("Well then.")) as server:
        run = await ran(worker, await asking(company, server), starter)
    assert (run.status, outside.calls) == ("succeeded", []), run.message
