"""Agents, runs and providers by REST."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from procrastinate.contrib.django.models import ProcrastinateJob
from rest_framework.test import APIClient

from access.models import Role, User
from agents.models import Agent, ModelProvider, Run
from agents.providers import CheckOutcome
from agents.runs import cancel_run, start_run
from agents.tests.conftest import ECHO, make_agent, make_provider
from audit.models import Record

pytestmark = pytest.mark.django_db


def client_of(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def staff(*permissions: str, roles: tuple[Role, ...] = (), name: str = "simon") -> User:
    user = User.objects.create_user(name)
    codes = [each.partition(".")[2] for each in permissions]
    user.user_permissions.set(
        Permission.objects.filter(codename__in=codes, content_type__app_label__in=("agents", "audit"))
    )
    user.groups.set(roles)
    return user


@pytest.fixture
def role() -> Role:
    return Role.objects.create(name="clerk")


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root")


@pytest.fixture
def an_agent(role: Role) -> Agent:
    return make_agent(role, make_provider())


def body(**fields):
    return {"name": "helper", "instructions": "Help.", "provider": "script", "role": "clerk", **fields}


# --- Agents ----------------------------------------------------------------------------------------------------------


def test_an_agent_comes_with_an_account_that_has_its_role_and_no_other(root, role):
    make_provider()
    answer = client_of(root).post("/api/v1/agents/", body())
    assert answer.status_code == 201, answer.json()
    account = User.objects.get(username=answer.json()["account"])
    assert (account.username, account.is_service, account.has_usable_password()) == ("agent-helper", True, False)
    assert list(account.groups.values_list("name", flat=True)) == ["clerk"]
    assert {(r.object_type, r.code) for r in Record.objects.filter(actor="root")} == {
        ("agents.Agent", "create"),
        ("access.User", "create"),
    }


def test_the_account_follows_its_agent(root, role, an_agent):
    other = Role.objects.create(name="boss")
    account = an_agent.account
    account.groups.add(other)
    path = f"/api/v1/agents/{an_agent.name}/"
    assert client_of(root).patch(path, {"name": "renamed", "role": "boss", "enabled": False}).status_code == 200
    account.refresh_from_db()
    assert (account.username, account.is_active) == ("agent-renamed", False)
    assert list(account.groups.values_list("name", flat=True)) == ["boss"]


def test_the_account_goes_with_its_agent(root, an_agent):
    assert client_of(root).delete(f"/api/v1/agents/{an_agent.name}/").status_code == 204
    assert not User.objects.filter(username="agent-clerk-agent").exists()


def test_the_name_of_a_user_is_not_taken_over(root, role):
    make_provider()
    User.objects.create_user("agent-helper")
    answer = client_of(root).post("/api/v1/agents/", body())
    assert answer.status_code == 400
    assert answer.json()["errors"]["name"][0]["code"] == "name_taken"


def test_nobody_gives_an_agent_a_role_that_they_do_not_have(role):
    make_provider()
    mallory = client_of(staff("agents.add_agent", "agents.change_agent"))
    answer = mallory.post("/api/v1/agents/", body())
    assert answer.status_code == 400
    assert answer.json()["errors"]["role"][0]["code"] == "not_yours_to_give"
    assert not Agent.objects.exists()
    holder = client_of(staff("agents.add_agent", roles=(role,), name="holder"))
    assert holder.post("/api/v1/agents/", body()).status_code == 201


@pytest.mark.parametrize("change", [{"instructions": "Give me everything."}, {"provider": "mine"}, {"enabled": False}])
def test_nobody_changes_an_agent_whose_role_they_do_not_have(an_agent, change):
    make_provider(name="mine")
    mallory = client_of(staff("agents.change_agent", "agents.delete_agent"))
    path = f"/api/v1/agents/{an_agent.name}/"
    assert mallory.patch(path, change).json()["code"] == "not_yours_to_change"
    assert mallory.delete(path).json()["code"] == "not_yours_to_change"


def test_nobody_steers_such_an_agent_through_its_model(an_agent):
    """A script, or a server of one's own, could make the agent call what its role may."""
    mallory = client_of(staff("agents.change_modelprovider"))
    answer = mallory.patch(f"/api/v1/model-providers/{an_agent.provider_id}/", {"script": "- {say: hello}"})
    assert answer.json()["code"] == "not_yours_to_change"


def test_who_may_run_agents_need_not_be_able_to_change_them(an_agent):
    client = client_of(staff("agents.run_agent"))
    path = f"/api/v1/agents/{an_agent.name}/"
    assert client.patch(path, {"instructions": "x"}).status_code == 403
    assert client.post(f"{path}runs/", {"input": "Go."}).status_code == 202


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_queued_with_its_job_and_its_record(root, an_agent):
    answer = client_of(root).post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": "  Write to a@example.com  "})
    assert answer.status_code == 202
    run = Run.objects.get()
    assert answer["Location"] == f"http://testserver/api/v1/runs/{run.pk}/"
    assert (run.input, run.status, run.on_behalf_of) == ("Write to a@example.com", "queued", "root")
    job = ProcrastinateJob.objects.get(pk=run.job_id)
    assert (job.queue_name, job.args, job.status) == ("agents", {"run_id": str(run.pk)}, "todo")
    record = Record.objects.get(trace_id=answer.json()["trace_id"])
    assert (record.kind, record.code, record.actor, record.object_id) == ("agent", "run_queued", "root", str(run.pk))
    assert record.args_commit is not None
    assert "a@example.com" not in (record.detail or "")


@pytest.mark.parametrize("task", ["", "   ", "x" * 32_001])
def test_a_run_needs_a_task_of_bearable_length(root, an_agent, task):
    answer = client_of(root).post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": task})
    assert (answer.status_code, Run.objects.count()) == (400, 0)


def test_without_the_permission_nothing_is_run(an_agent):
    client = client_of(staff("agents.view_agent"))
    assert client.post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": "Go."}).status_code == 403
    assert not Run.objects.exists()


def test_an_agent_that_is_off_cannot_be_run(root, an_agent):
    Agent.objects.update(enabled=False)
    answer = client_of(root).post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": "Go."})
    assert (answer.status_code, answer.json()["code"]) == (409, "agent_disabled")


def test_nobody_fills_the_queue_alone(an_agent):
    user = staff("agents.run_agent")
    for _ in range(20):
        start_run(an_agent, "Go.", starter=user, door="rest")
    answer = client_of(user).post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": "Go."})
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_runs")
    other = staff("agents.run_agent", name="other")
    assert client_of(other).post(f"/api/v1/agents/{an_agent.name}/runs/", {"input": "Go."}).status_code == 202


def test_everybody_sees_their_own_runs_and_viewers_see_all(an_agent):
    mine, viewer = staff("agents.run_agent"), staff("agents.view_run", name="viewer")
    stranger = staff("agents.run_agent", name="stranger")
    run = start_run(an_agent, "Secret task.", starter=mine, door="rest")
    path = f"/api/v1/runs/{run.pk}/"
    for user, seen in ((mine, 200), (viewer, 200), (stranger, 404)):
        assert client_of(user).get(path).status_code == seen
        assert client_of(user).get(f"{path}events/").status_code == seen
        assert len(client_of(user).get("/api/v1/runs/").json()["results"]) == (seen == 200)
    reader = staff("agents.view_run", "audit.read_arguments", name="reader")
    for user in (mine, reader):
        assert client_of(user).get(path).json()["input"] == "Secret task."
    assert "audit.read_arguments" in client_of(viewer).get(path).json()["input"]
    assert "input" not in client_of(mine).get("/api/v1/runs/").json()["results"][0]


def test_who_started_a_run_cancels_it_and_others_need_a_permission(an_agent):
    mine, viewer = staff("agents.run_agent"), staff("agents.view_run", name="viewer")
    boss = staff("agents.view_run", "agents.cancel_run", name="boss")
    first, second = (start_run(an_agent, "Go.", starter=mine, door="rest") for _ in range(2))
    assert client_of(viewer).post(f"/api/v1/runs/{first.pk}/cancel/").status_code == 403
    assert client_of(mine).post(f"/api/v1/runs/{first.pk}/cancel/").json()["status"] == "cancelled"
    assert client_of(boss).post(f"/api/v1/runs/{second.pk}/cancel/").json()["status"] == "cancelled"
    again = client_of(mine).post(f"/api/v1/runs/{first.pk}/cancel/")
    assert (again.status_code, again.json()["code"]) == (409, "run_finished")
    assert Record.objects.get(code="run_cancel_requested", object_id=str(second.pk)).actor == "boss"


def test_cancelling_twice_is_recorded_once(an_agent, root):
    run = start_run(an_agent, "Go.", starter=root, door="rest")
    Run.objects.update(status="running")
    for _ in range(2):
        run = cancel_run(run, actor=root, door="rest")
    assert run.cancel_requested_at is not None
    assert Record.objects.filter(code="run_cancel_requested").count() == 1


# --- Model providers -------------------------------------------------------------------------------------------------


def provider_body(**fields):
    return {"name": "llm", "kind": "openai", "model": "m", "base_url": "https://llm.example.com/v1", **fields}


def test_a_key_is_written_and_never_read(root):
    client = client_of(root)
    answer = client.post("/api/v1/model-providers/", provider_body(api_key="sk-very-secret"))
    assert (answer.status_code, answer.json()["api_key_set"]) == (201, True)
    path = f"/api/v1/model-providers/{answer.json()['id']}/"
    assert "sk-very-secret" not in client.get(path).content.decode()
    assert not Record.objects.filter(detail__contains="sk-very-secret").exists()
    assert client.patch(path, {"temperature": 0.5}).json()["api_key_set"] is True
    assert client.patch(path, {"api_key": None}).json()["api_key_set"] is False


def test_a_key_is_not_sent_to_another_address(root):
    client = client_of(root)
    made = client.post("/api/v1/model-providers/", provider_body(api_key="sk-very-secret")).json()
    path = f"/api/v1/model-providers/{made['id']}/"
    answer = client.patch(path, {"base_url": "https://evil.example.com/v1"})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["api_key"])
    assert client.patch(path, {"base_url": "https://new.example.com/v1", "api_key": "sk-2"}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"base_url": "file:///etc/passwd"}, "base_url"),
        ({"base_url": "https://user:secret@llm.example.com/v1"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "https://x:99999/"}, "base_url"),
        ({"model": ""}, "model"),
        ({"kind": "anthropic"}, "base_url"),
        ({"kind": "scripted", "base_url": "", "script": ""}, "script"),
        ({"kind": "scripted", "base_url": "", "script": "- {call: x}"}, "script"),
        ({"kind": "scripted", "base_url": "", "script": ECHO, "api_key": "sk"}, "api_key"),
        ({"temperature": 3}, "temperature"),
        ({"kind": "telepathy"}, "kind"),
    ],
)
def test_what_cannot_work_is_refused(root, fields, place):
    answer = client_of(root).post("/api/v1/model-providers/", provider_body(**fields))
    assert (answer.status_code, list(answer.json()["errors"])) == (400, [place])
    assert not ModelProvider.objects.exists()


def test_the_kind_is_fixed(root):
    provider = make_provider()
    answer = client_of(root).patch(f"/api/v1/model-providers/{provider.pk}/", {"kind": "openai", "model": "m"})
    assert list(answer.json()["errors"]) == ["kind"]


def test_a_provider_in_use_is_not_deleted(root, an_agent):
    answer = client_of(root).delete(f"/api/v1/model-providers/{an_agent.provider_id}/")
    assert (answer.status_code, answer.json()["code"]) == (409, "in_use")


def test_a_test_is_recorded_with_what_came_of_it(root, monkeypatch):
    provider = make_provider()
    monkeypatch.setattr("agents.api.ask_to_test", lambda provider: CheckOutcome(False, "The model kept silent."))
    answer = client_of(root).post(f"/api/v1/model-providers/{provider.pk}/test/")
    assert answer.json() == {"ok": False, "message": "The model kept silent."}
    assert "kept silent" in Record.objects.get(code="test").detail
    nobody = client_of(staff("agents.change_modelprovider"))
    assert nobody.post(f"/api/v1/model-providers/{provider.pk}/test/").status_code == 403
