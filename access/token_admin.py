"""Tokens in the admin: made by `access.tokens`, shown once, then only listed and revoked."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.enums import ActionVariant  # type: ignore[import-untyped]
from unfold.widgets import (  # type: ignore[import-untyped]
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminSelect2Widget,
)

from access import tokens
from access.login import record_token
from access.models import ApiToken, RevokedSession, Scope, User
from access.privileges import may_manage
from access.tables import state_of
from audit.bulk import BulkAdmin, bulk_action
from audit.changes import differences, stored
from audit.doors import ReadOnlyAdmin
from audit.theme import action, dialog, display, go_to
from tools import clients

_FORM_REMEMBERED = 24 * 3600


@admin.register(ApiToken)
class ApiTokenAdmin(BulkAdmin):
    """Tokens: made here, shown once, then only listed and revoked."""

    list_display = ("prefix", "name", "user", "scope_list", "toolset", "state", "expires_at", "last_used")
    list_filter = ("user__is_service", ("toolset", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("user", "toolset", "use")
    search_fields = ("prefix", "name", "user__username")
    actions = ("revoke_selected",)
    actions_detail = ("revoke",)
    fields = ("user", "name", "scopes", "toolset", "expires_at")
    empty_icon = "vpn_key"
    empty_title = "No tokens yet"
    empty_text = "A token lets a program or an MCP client act for a user, within the user's roles."

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """One token for each form: the page that shows a secret is the answer to a POST, which a reload repeats."""
        sent = request.POST.get("csrfmiddlewaretoken", "")  # differs each time that a form is shown
        if sent and not cache.add(f"token-form:{sha256(sent.encode()).hexdigest()}", 1, _FORM_REMEMBERED):
            messages.warning(request, "This form was sent before. The token that it made is not shown again.")
            return HttpResponseRedirect(reverse("admin:access_apitoken_changelist"))
        return super().add_view(request, form_url, extra_context)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What can be chosen, and later what became of it."""
        if obj is None:
            return super().get_fieldsets(request, obj)
        shown = ("prefix", "name", "user", "scope_list", "toolset", "state", "created_at", "expires_at", "last_used")
        return ((None, {"fields": shown}),)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: a token is revoked, and another one made."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As long as its user may be managed."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (not isinstance(obj, ApiToken) or may_manage(request.user, obj.user))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Users to choose from are those whom the editor may manage; scopes are boxes to tick."""
        form = super().get_form(request, obj, change, **kwargs)
        if obj is None and "user" in form.base_fields:
            users = User.objects.filter(is_active=True).prefetch_related("groups")
            managed = [user.pk for user in users if may_manage(request.user, user)]
            field: Any = form.base_fields["user"]
            field.queryset = User.objects.filter(pk__in=managed).order_by("username")
        return form

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Searchable lists."""
        return super().formfield_for_foreignkey(db_field, request, **{"widget": UnfoldAdminSelect2Widget(), **kwargs})

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Scopes as check boxes."""
        if db_field.name != "scopes":
            return super().formfield_for_dbfield(db_field, request, **kwargs)
        return forms.MultipleChoiceField(
            choices=Scope.choices,
            initial=[Scope.TOOLS.value],
            widget=UnfoldAdminCheckboxSelectMultipleWidget(),
            help_text="What the token may be used for; the user's roles still have to allow it.",
        )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Issue the token; its secret goes to the next page and nowhere else."""
        given = form.cleaned_data
        token, secret = tokens.issue(
            given["user"],
            name=given["name"],
            scopes=given["scopes"],
            toolset=given["toolset"],
            expires_at=given["expires_at"],
        )
        obj.__dict__.update(token.__dict__)
        obj.secret_to_show = secret

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Record that the token was made."""
        record_token(request, form.instance, "token_created", differences({}, stored(form.instance)), door="admin")

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """One button: the next page shows the secret."""
        only = {"show_save_and_continue": False, "show_save_and_add_another": False}
        return super().render_change_form(request, {**context, **only}, *args, **kwargs)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        """The page that shows the secret, once; nothing keeps it, not even the session."""
        context = {
            **self.admin_site.each_context(request),
            "title": "The token is ready",
            "doing": "New token",
            "opts": self.opts,
            "token": obj,
            "secret": obj.secret_to_show,
            "snippets": _snippets(obj),
        }
        response = TemplateResponse(request, "admin/token_issued.html", context)
        response["Cache-Control"] = "no-store"
        return response

    @action(
        description="Revoke",
        permissions=["revoke"],
        icon="block",
        variant=ActionVariant.DANGER,
        dialog=dialog(
            "Revoke this token?", "Whoever uses it is refused within a second. This cannot be undone.", "Revoke"
        ),
    )
    def revoke(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """End it now."""
        token = ApiToken.objects.select_related("user").get(pk=object_id)
        revoke_token(request, token)
        messages.success(request, f"The token {token} is revoked.")
        return go_to(reverse("admin:access_apitoken_change", args=(object_id,)))

    @bulk_action(
        "Revoke",
        permission="revoke",
        danger=True,
        consequence="Whoever uses them is refused within a second. This cannot be undone.",
    )
    def revoke_selected(self, request: HttpRequest, token: ApiToken, given: Any) -> None:
        """End them now, all or none."""
        token.revoked_at = token.revoked_at or timezone.now()

    def save_bulk(self, request: HttpRequest, obj: models.Model) -> None:
        """By the verb that a single token is revoked with."""
        revoke_token(request, ApiToken.objects.get(pk=obj.pk))

    def has_revoke_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's permission to change tokens, as long as the token's user may be managed."""
        allowed = request.user.has_perm("access.change_apitoken")
        return allowed and (not isinstance(obj, ApiToken) or may_manage(request.user, obj.user))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """No button where nothing is left to revoke."""
        left = ApiToken.objects.filter(pk=object_id, revoked_at=None).exists()
        return super().get_actions_detail(request, object_id) if left else []  # type: ignore[misc]

    @display(description="Scopes")
    def scope_list(self, token: ApiToken) -> str:
        """Separated by commas."""
        return ", ".join(token.scopes)

    @display(description="State")
    def state(self, token: ApiToken) -> SafeString:
        """Valid, expired, revoked, or of a user who is off."""
        return state_of(token)

    @display(description="Last used")
    def last_used(self, token: ApiToken) -> str:
        """When and from where."""
        use = getattr(token, "use", None)
        return "Never" if use is None else f"{use.last_used_at:%Y-%m-%d %H:%M} {use.last_address}".strip()


def _snippets(token: Any) -> list[clients.Snippet]:
    """For MCP clients, if the token is of use to them."""
    if Scope.TOOLS.value not in token.scopes:
        return []
    return clients.configurations(token.toolset.name if token.toolset else None, token.secret_to_show)


def revoke_token(request: HttpRequest, token: ApiToken) -> None:
    """Revoke and record. Raises PermissionDenied when the token's user is not for the caller to manage."""
    if not may_manage(request.user, token.user):
        raise PermissionDenied
    with transaction.atomic():
        before = stored(token)
        tokens.revoke(token)
        if changes := differences(before, stored(token)):
            record_token(request, token, "token_revoked", changes, door="admin")


@admin.register(RevokedSession)
class RevokedSessionAdmin(ReadOnlyAdmin):
    """Login sessions of REST clients that were ended before their time."""

    list_display = ("sid", "expires_at")
    search_fields = ("sid",)
    ordering = ("-expires_at",)
    empty_icon = "logout"
    empty_title = "No ended sessions"
    empty_text = "A session is listed here when it is ended by its user, or when a refresh token was used twice."
