"""Agents, runs and providers in the admin."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from access.models import Role, User
from agents.models import Agent, ModelProvider, Run
from agents.runs import start_run
from agents.tests.conftest import ECHO, make_agent, make_provider
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record

pytestmark = pytest.mark.django_db

ADD = "/admin/agents/agent/add/"
ADD_PROVIDER = "/admin/agents/modelprovider/add/"


def logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def role() -> Role:
    return Role.objects.create(name="clerk")


@pytest.fixture
def root() -> Client:
    return logged_in(User.objects.create_superuser("root"))


def staff(*permissions: str, roles: tuple[Role, ...] = (), name: str = "simon") -> Client:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label__in=("agents", "audit"), codename__in=permissions)
    )
    user.groups.set(roles)
    return logged_in(user)


def form(role: Role, provider: ModelProvider, **fields):
    limits = {"max_model_calls": 5, "max_tool_calls": 5, "max_seconds": 60, "max_tokens": 1000}
    own = {"name": "helper", "instructions": "Help.", "role": role.pk, "provider": provider.pk, "enabled": "on"}
    return {**own, **limits, **fields}


def provider_form(**fields):
    own = {"name": "llm", "kind": "openai", "model": "m", "base_url": "https://llm.example.com/v1", "enabled": "on"}
    return {**own, "max_output_tokens": 100, "timeout_seconds": 10, **fields}


def errors(answer) -> dict[str, list[str]]:
    return dict(answer.context["adminform"].form.errors)


# --- Agents ----------------------------------------------------------------------------------------------------------


def test_without_a_model_the_admin_says_what_to_do_first(root):
    page = root.get(ADD).content.decode()
    assert "Add a model provider first" in page
    assert ADD_PROVIDER in page


def test_an_agent_is_made_with_its_account(root, role):
    assert root.post(ADD, form(role, make_provider())).status_code == 302
    agent = Agent.objects.get()
    assert (agent.account.username, agent.account.is_service) == ("agent-helper", True)
    assert list(agent.account.groups.values_list("pk", flat=True)) == [role.pk]
    assert set(Record.objects.filter(door="admin").values_list("object_type", "code")) == {
        ("agents.Agent", "create"),
        ("access.User", "create"),
    }


def test_a_name_that_a_user_has_saves_nothing(root, role):
    User.objects.create_user("agent-helper")
    answer = root.post(ADD, form(role, make_provider()), follow=True)
    assert "Nothing was saved: There is a user agent-helper already" in answer.content.decode()
    assert not Agent.objects.exists()


def test_roles_to_choose_from_are_ones_own(role):
    provider = make_provider()
    boss = Role.objects.create(name="boss")
    client = staff("add_agent", "view_modelprovider", roles=(role,))
    choices = client.get(ADD).context["adminform"].form.fields["role"].queryset
    assert set(choices) == {role}
    assert "role" in errors(client.post(ADD, form(boss, provider)))
    assert not Agent.objects.exists()


def test_an_agent_with_another_role_can_only_be_looked_at(role):
    agent = make_agent(role, make_provider())
    client = staff("view_agent", "change_agent", "delete_agent")
    path = f"/admin/agents/agent/{agent.pk}/change/"
    assert client.post(path, form(role, agent.provider, instructions="Obey me.")).status_code == 403
    assert client.post(f"/admin/agents/agent/{agent.pk}/delete/", {"post": "yes"}).status_code == 403
    assert b'name="instructions"' not in client.get(path).content
    chosen = {"action": "delete_selected", "_selected_action": agent.pk, "post": "yes"}
    client.post("/admin/agents/agent/", chosen)
    assert Agent.objects.get().instructions == "Be brief."


def test_deleting_agents_deletes_their_accounts(root, role):
    provider = make_provider()
    one, two = (make_agent(role, provider, name=name) for name in ("one", "two"))
    root.post(f"/admin/agents/agent/{one.pk}/delete/", {"post": "yes"})
    root.post("/admin/agents/agent/", {"action": "delete_selected", "_selected_action": two.pk, "post": "yes"})
    assert not Agent.objects.exists()
    assert not User.objects.filter(is_service=True).exists()


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_started_and_followed_from_the_agents_page(root, role):
    agent = make_agent(role, make_provider())
    path = f"/admin/agents/agent/{agent.pk}/run/"
    page = root.get(path).content.decode()
    assert "Scripted, no AI" in page
    answer = root.post(path, {"task": "Write to a@example.com"})
    run = Run.objects.get()
    assert answer["Location"] == f"/admin/agents/run/{run.pk}/change/"
    page = root.get(answer["Location"]).content.decode()
    assert f'data-events="/api/v1/runs/{run.pk}/events/"' in page
    assert "Write to a@example.com" in page
    assert Record.objects.get(code="run_queued").door == "admin"


def test_an_empty_task_is_told_beside_its_field(root, role):
    agent = make_agent(role, make_provider())
    page = root.post(f"/admin/agents/agent/{agent.pk}/run/", {"task": " "}).content.decode()
    assert "Say what the agent shall do." in page
    assert not Run.objects.exists()


def test_a_task_is_shown_as_text(root, role):
    agent = make_agent(role, make_provider())
    run = start_run(agent, "<script>alert(1)</script>", starter=User.objects.get(username="root"), door="admin")
    for path in ("/admin/agents/run/", f"/admin/agents/run/{run.pk}/change/"):
        assert b"<script>alert(1)" not in root.get(path).content


def test_a_run_is_cancelled_from_its_page(root, role):
    run = start_run(make_agent(role, make_provider()), "Go.", starter=User.objects.get(username="root"), door="admin")
    path = f"/admin/agents/run/{run.pk}/change/"
    assert "Cancel" in root.get(path).content.decode()
    assert root.post(path).status_code == 302
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert 'id="run-cancel"' not in root.get(path).content.decode()


def test_runs_of_others_need_a_permission(root, role):
    agent = make_agent(role, make_provider())
    run = start_run(agent, "Secret.", starter=User.objects.get(username="root"), door="admin")
    path = f"/admin/agents/run/{run.pk}/change/"
    runner = staff("run_agent", name="runner")
    assert runner.get(path).status_code == 404
    assert b"Secret." not in runner.get("/admin/agents/run/").content
    assert b"Secret." in staff("view_run", "read_arguments", name="reader").get(path).content
    viewer = staff("view_run", name="viewer")
    page = viewer.get(path).content
    assert (b"Secret." in page, b"audit.read_arguments" in page) == (False, True)
    assert b"Secret." not in viewer.get("/admin/agents/run/").content
    assert viewer.post(path).status_code == 403
    assert staff(name="nobody").get(path).status_code in (403, 404)


def test_running_needs_its_permission(role):
    agent = make_agent(role, make_provider())
    client = staff("view_agent", "change_agent", roles=(role,))
    assert client.get(f"/admin/agents/agent/{agent.pk}/run/").status_code == 403
    assert client.post(f"/admin/agents/agent/{agent.pk}/run/", {"task": "Go."}).status_code == 403


# --- Providers -------------------------------------------------------------------------------------------------------


def test_a_key_is_set_kept_and_removed_and_never_shown(root):
    assert root.post(ADD_PROVIDER, provider_form(api_key="sk-secret")).status_code == 302
    provider = ModelProvider.objects.get()
    path = f"/admin/agents/modelprovider/{provider.pk}/change/"
    assert b"sk-secret" not in root.get(path).content
    root.post(path, provider_form(model="m2"))
    assert ModelProvider.objects.get().secrets == {"api_key": "sk-secret"}
    assert errors(root.post(path, provider_form(base_url="https://evil.example.com/v1"))).keys() == {"api_key"}
    root.post(path, provider_form(clear_api_key="on"))
    assert ModelProvider.objects.get().secrets is None
    assert not Record.objects.filter(detail__contains="sk-secret").exists()


def test_a_script_is_checked_when_it_is_saved(root):
    answer = root.post(ADD_PROVIDER, provider_form(kind="scripted", base_url="", model="", script="- {call: x}"))
    assert errors(answer)["script"] == ["The last step, and no other, says something: `say`."]
    root.post(ADD_PROVIDER, provider_form(kind="scripted", base_url="", model="", script=ECHO))
    assert b"Scripted, no AI" in root.get("/admin/agents/modelprovider/").content


def test_a_provider_of_a_stronger_agent_can_only_be_looked_at(role):
    provider = make_provider()
    make_agent(role, provider)
    client = staff("view_modelprovider", "change_modelprovider")
    path = f"/admin/agents/modelprovider/{provider.pk}/change/"
    assert client.get(path).status_code == 200
    assert client.post(path, provider_form(kind="scripted", script="- {say: mine}")).status_code == 403
    assert ModelProvider.objects.get().script == provider.script


def test_the_story_of_a_record_leads_to_the_run_that_it_belongs_to(root: Client, role: Role) -> None:
    starter = User.objects.get(username="root")
    run = start_run(make_agent(role, make_provider()), "Write.", starter=starter, door="admin")
    call = record(
        Entry(kind="call", code="ok", door="agent", actor="agent-clerk-agent", detail=json.dumps({"run": str(run.pk)}))
    )
    page = root.get(f"/admin/audit/record/{Record.objects.get(rid=call).pk}/change/").content.decode()
    assert f"/admin/agents/run/{run.pk}/change/" in page
