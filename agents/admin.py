"""Agents, their runs and model providers in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models, transaction
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (  # type: ignore[import-untyped]
    BooleanRadioFilter,
    ChoicesDropdownFilter,
    RelatedDropdownFilter,
)

from access.models import Role, User
from access.privileges import assignable_groups
from agents.accounts import delete_agent, keep_account, may_edit_agent, may_edit_provider
from agents.configuration import api_key_of
from agents.forms import ModelProviderForm
from agents.models import LONGEST_INPUT, Agent, ModelProvider, Run
from agents.providers import ask_to_test, record_test
from agents.runs import WITHHELD, RunRefused, cancel_run, may_read, start_run
from audit.arguments import PERMISSION
from audit.doors import ReadOnlyAdmin, RecordedAdmin
from audit.theme import action, badge, dialog, display, go_to, mono

_COLOURS = {
    Run.Status.QUEUED: "grey",
    Run.Status.RUNNING: "blue",
    Run.Status.SUCCEEDED: "green",
    Run.Status.FAILED: "red",
    Run.Status.CANCELLED: "orange",
}
_PILLS = {
    Run.Status.SUCCEEDED: "pill-good",
    Run.Status.FAILED: "pill-bad",
    Run.Status.CANCELLED: "pill-warning",
}
_DOOR = "admin"
_RECENT = 6
NO_AI = "Scripted, no AI"


def _user(request: HttpRequest) -> User:
    assert isinstance(request.user, User), "the admin lets nobody else in"
    return request.user


def _scripted() -> SafeString:
    return badge(NO_AI, "orange", "It follows a script that an administrator wrote.")


@admin.register(ModelProvider)
class ModelProviderAdmin(RecordedAdmin):
    """Model providers: where language models are reached."""

    form = ModelProviderForm
    list_display = ("name", "shown_kind", "model", "state", "checked", "checked_at", "agent_count")
    list_filter = (("kind", ChoicesDropdownFilter), ("enabled", BooleanRadioFilter))
    list_filter_submit = True
    search_fields = ("name", "description", "model")
    readonly_fields = ("checked", "checked_at", "check_message")
    actions_detail = ("test",)
    conditional_fields = {
        "model": "kind != 'scripted'",
        "base_url": "kind == 'openai'",
        "api_key": "kind != 'scripted'",
        "clear_api_key": "kind != 'scripted'",
        "temperature": "kind != 'scripted'",
        "max_output_tokens": "kind != 'scripted'",
        "timeout_seconds": "kind != 'scripted'",
        "script": "kind == 'scripted'",
    }
    empty_icon = "neurology"
    empty_title = "No model providers yet"
    empty_text = "Agents ask a language model: any OpenAI-compatible server, a provider, or a script without AI."

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelProvider]:
        """With the number of agents."""
        rows: QuerySet[ModelProvider] = super().get_queryset(request)
        return rows.annotate(how_many=Count("agents"))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may only look sees no field for the key; what is not there yet was never tested."""
        key = ("api_key",) if obj is None or self.has_change_permission(request, obj) else ()
        clear = ("clear_api_key",) if key and obj is not None and api_key_of(obj) else ()
        asked = ("model", "base_url", *key, *clear, "temperature", "max_output_tokens", "timeout_seconds", "script")
        own = (
            ("Model provider", {"fields": ("name", "description", "kind", "enabled")}),
            ("How it is asked", {"fields": asked}),
        )
        return own if obj is None else (*own, ("State", {"fields": ("checked", "checked_at", "check_message")}))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The script in a face in which its columns can be seen; the kind stays what it is."""
        form = super().get_form(request, obj, change, **kwargs)
        if script := form.base_fields.get("script"):
            script.widget.attrs |= {
                "rows": 16,
                "class": f"{script.widget.attrs.get('class', '')} mono",
                "spellcheck": "false",
            }
        if obj is not None and (kind := form.base_fields.get("kind")):
            kind.choices = [(obj.kind, obj.get_kind_display())]
        return form

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only who could change the agents that follow it."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (not isinstance(obj, ModelProvider) or may_edit_provider(request.user, obj))

    def has_test_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A permission of its own, since it connects to the outside."""
        return request.user.has_perm("agents.test_modelprovider")

    @action(
        description="Test",
        permissions=["test"],
        icon="network_check",
        dialog=dialog(
            "Ask the model for one word?",
            "The agent worker asks it, with the settings that are stored. This can take half a minute.",
            "Ask",
        ),
    )
    def test(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """Have the model asked, and say what came of it."""
        provider = ModelProvider.objects.get(pk=object_id)
        outcome = ask_to_test(provider)
        record_test(provider, outcome, door=_DOOR, request=request)
        messages.add_message(request, messages.SUCCESS if outcome.ok else messages.ERROR, outcome.message)
        return go_to(reverse("admin:agents_modelprovider_change", args=(object_id,)))

    @display(description="Kind", ordering="kind")
    def shown_kind(self, provider: ModelProvider) -> SafeString | str:
        """A script stands out."""
        return _scripted() if provider.is_scripted else provider.get_kind_display()

    @display(description="State", ordering="enabled")
    def state(self, provider: ModelProvider) -> SafeString:
        """On or off."""
        return badge("On", "green") if provider.enabled else badge("Off", "grey")

    @display(description="Last test", ordering="check_ok")
    def checked(self, provider: ModelProvider) -> SafeString:
        """Whether it answered when it was last asked."""
        if provider.check_ok is None:
            return badge("Never tested", "grey")
        return badge("Answers", "green") if provider.check_ok else badge("Failed", "red", provider.check_message)

    @display(description="Agents", ordering="how_many")
    def agent_count(self, provider: Any) -> int:
        """How many agents ask it."""
        return int(provider.how_many)


@admin.register(Agent)
class AgentAdmin(RecordedAdmin):
    """Agents: instructions, a model, and a role."""

    list_display = ("name", "description", "shown_provider", "role", "toolset", "state", "run_count")
    list_filter = (("enabled", BooleanRadioFilter), ("role", RelatedDropdownFilter))
    list_filter_submit = True
    list_select_related = ("provider", "role", "toolset")
    search_fields = ("name", "description")
    readonly_fields = ("shown_account",)
    actions_detail = ("run_it",)
    fieldsets = (
        ("Agent", {"fields": ("name", "description", "enabled", "provider", "instructions")}),
        ("What it may call", {"fields": ("role", "toolset", "shown_account")}),
        ("Limits of a run", {"fields": ("max_model_calls", "max_tool_calls", "max_seconds", "max_tokens")}),
    )
    empty_icon = "smart_toy"
    empty_title = "No agents yet"
    empty_text = "An agent follows your instructions with a language model, and calls the tools that its role allows."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Agent]:
        """With the number of runs."""
        rows: QuerySet[Agent] = super().get_queryset(request)
        return rows.annotate(how_many=Count("runs"))

    def get_urls(self) -> list[URLPattern]:
        """With the page where it is run."""
        own = path("<uuid:pk>/run/", self.admin_site.admin_view(self.run_view), name="agents_agent_run")
        return [own, *super().get_urls()]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Without a model there is nothing to follow instructions: say so."""
        if ModelProvider.objects.exists() or not self.has_add_permission(request):
            return super().add_view(request, form_url, extra_context)
        card = {
            "title": "Add a model provider first",
            "text": "An agent asks a language model: an OpenAI-compatible server of yours, a provider, or a script"
            " without AI to try things out.",
            "url": reverse("admin:agents_modelprovider_add"),
            "icon": "neurology",
        }
        context = {**self.admin_site.each_context(request), "title": "There is no model to ask yet", "opts": self.opts}
        return TemplateResponse(request, "admin/choose.html", {**context, "cards": [card]})

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Roles to choose from are those that the editor may give, and the one that the agent has."""
        form = super().get_form(request, obj, change, **kwargs)
        if "role" in form.base_fields:
            may = assignable_groups(request.user).values("pk")
            known = Role.objects.filter(pk__in=may)
            form.base_fields["role"].queryset = known if obj is None else known | Role.objects.filter(pk=obj.role_id)
        if "instructions" in form.base_fields:
            form.base_fields["instructions"].widget.attrs["rows"] = 12
        return form

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only who could hold its role."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (not isinstance(obj, Agent) or may_edit_agent(request.user, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only who could hold its role."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (not isinstance(obj, Agent) or may_edit_agent(request.user, obj))

    def has_run_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A permission of its own."""
        return request.user.has_perm("agents.run_agent")

    def save_form(self, request: HttpRequest, form: Any, change: bool) -> Any:
        """The account comes before its agent. A name that is taken was refused by `clean_name`."""
        agent = super().save_form(request, form, change)
        keep_account(agent, door=_DOOR, request=request)
        return agent

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """A name that a user has already takes the change with it."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except ValidationError as error:
            messages.error(request, f"Nothing was saved: {' '.join(error.messages)}")
            return HttpResponseRedirect(request.get_full_path())

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        """With its account."""
        assert isinstance(obj, Agent)
        with transaction.atomic():
            delete_agent(obj, door=_DOOR, request=request)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Each with its account, all or none. Raises PermissionDenied for one that holds more than the editor."""
        agents = list(queryset)
        if not all(may_edit_agent(request.user, agent) for agent in agents):
            raise PermissionDenied
        with transaction.atomic():
            for agent in agents:
                delete_agent(agent, door=_DOOR, request=request)

    @action(description="Run", permissions=["run"], icon="play_arrow")
    def run_it(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the page where it is run."""
        return HttpResponseRedirect(reverse("admin:agents_agent_run", args=(object_id,)))

    def run_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Take a task, start the run, and go to its page."""
        if not self.has_run_permission(request):
            raise PermissionDenied
        agent = Agent.objects.select_related("provider", "role", "toolset").filter(pk=pk).first()
        if agent is None:
            raise Http404
        task, error = request.POST.get("task", ""), ""
        if request.method == "POST":
            try:
                run = start_run(agent, task, starter=_user(request), door=_DOOR, request=request)
                return HttpResponseRedirect(reverse("admin:agents_run_change", args=(run.pk,)))
            except (RunRefused, ValidationError) as refused:
                error = " ".join(getattr(refused, "messages", [str(refused)]))
        return run_page(request, self.admin_site, agent, None, task=task, error=error)

    @display(description="Model", ordering="provider__name")
    def shown_provider(self, agent: Agent) -> SafeString | str:
        """A script stands out."""
        return _scripted() if agent.provider.is_scripted else agent.provider.name

    @display(description="Service account")
    def shown_account(self, agent: Agent) -> SafeString | str:
        """The user that it calls as."""
        if agent._state.adding:
            return "Made with the agent."
        url = reverse("admin:access_serviceaccount_change", args=(agent.account_id,))
        return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', url, agent.account)

    @display(description="State", ordering="enabled")
    def state(self, agent: Agent) -> SafeString:
        """On or off."""
        return badge("On", "green") if agent.enabled else badge("Off", "grey")

    @display(description="Runs", ordering="how_many")
    def run_count(self, agent: Any) -> SafeString:
        """How many there are, with a way to them."""
        url = f"{reverse('admin:agents_run_changelist')}?agent__id__exact={agent.pk}"
        return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', url, agent.how_many)


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    """Runs: what agents were asked, and what they did. Everybody sees their own."""

    list_display = (
        "created_at",
        "shown_status",
        "agent",
        "shown_task",
        "on_behalf_of",
        "shown_model",
        "took",
        "tokens",
    )
    list_display_links = ("created_at", "shown_status")
    list_filter = (("status", ChoicesDropdownFilter), ("agent", RelatedDropdownFilter))
    list_filter_submit = True
    list_select_related = ("agent",)
    search_fields = ("agent__name", "on_behalf_of", "code")
    ordering = ("-created_at", "-id")
    list_per_page = 50
    show_full_result_count = False
    empty_icon = "play_circle"
    empty_title = "No runs yet"
    empty_text = "Run an agent from its page, by REST, or with manage.py run_agent."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        """All, or one's own."""
        rows: QuerySet[Run] = super().get_queryset(request)
        return rows if request.user.has_perm("agents.view_run") else rows.filter(started_by=request.user.pk)

    def get_list_display(self, request: HttpRequest) -> Any:
        """Without the tasks, for whom those of others are not."""
        listed = super().get_list_display(request)
        if request.user.has_perm("agents.view_run") and not request.user.has_perm(PERMISSION):
            return [name for name in listed if name != "shown_task"]
        return listed

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may view runs, and who started this one; `get_queryset` leaves out the others."""
        return super().has_view_permission(request, obj) or request.user.has_perm("agents.run_agent")

    def has_module_permission(self, request: HttpRequest) -> bool:
        """As above."""
        return self.has_view_permission(request)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The run as it happens; a POST cancels it."""
        run = self.get_object(request, object_id)
        if run is None or not self.has_view_permission(request, run):
            raise Http404
        if request.method == "POST":
            if not _may_cancel(request, run):
                raise PermissionDenied
            cancel_run(run, actor=_user(request), door=_DOOR, request=request)
            return HttpResponseRedirect(request.path)
        task = str(run.input) if may_read(request.user, run) else WITHHELD
        return run_page(request, self.admin_site, run.agent, run, task=task)

    @display(description="Status", ordering="status")
    def shown_status(self, run: Run) -> SafeString:
        """Coloured."""
        return badge(run.get_status_display(), _COLOURS[Run.Status(run.status)], run.message)

    @display(description="Task")
    def shown_task(self, run: Run) -> str:
        """Its beginning."""
        text = " ".join(str(run.input).split())
        return text if len(text) <= 80 else f"{text[:79]}…"

    @display(description="Model")
    def shown_model(self, run: Run) -> SafeString | str:
        """A script stands out."""
        return _scripted() if run.scripted else run.model or "-"

    @display(description="Took")
    def took(self, run: Run) -> str:
        """Seconds from its beginning to its end."""
        if run.started_at is None or run.finished_at is None:
            return "-"
        return f"{(run.finished_at - run.started_at).total_seconds():.1f} s"


def _may_cancel(request: HttpRequest, run: Run) -> bool:
    return run.started_by_id == request.user.pk or request.user.has_perm("agents.cancel_run")


def run_page(
    request: HttpRequest, site: admin.AdminSite, agent: Agent, run: Run | None, *, task: str, error: str = ""
) -> HttpResponse:
    """The page on which an agent is run and a run is followed."""
    mine = agent.runs.filter(started_by=request.user.pk).order_by("-created_at")[:_RECENT]
    context = {
        **site.each_context(request),
        "title": f"Run {agent.name}" if run is None else f"Run of {agent.name}",
        "doing": "Run" if run is None else "",
        "opts": (Agent if run is None else Run)._meta,
        "original": agent if run is None else run,
        "agent": agent,
        "scripted": run.scripted if run is not None and run.started_at else agent.provider.is_scripted,
        "no_ai": NO_AI,
        "run": run,
        "task": task,
        "error": error,
        "longest": LONGEST_INPUT,
        "recent": [(each, _PILLS.get(Run.Status(each.status), "")) for each in mine],
        "pill": _PILLS.get(Run.Status(run.status), "") if run is not None else "",
        "may_run": request.user.has_perm("agents.run_agent"),
        "may_cancel": run is not None and not run.is_finished and _may_cancel(request, run),
        "may_see_records": request.user.has_perm("audit.view_record"),
        "may_see_agent": request.user.has_perm("agents.view_agent"),
        "trace": mono(run.trace_id) if run is not None else "",
    }
    request.current_app = site.name
    return TemplateResponse(request, "admin/agents/run.html", context)
