"""Roles and grants in the admin: what a role may do, whom it is given to, and what its grants come to."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from access.drafts import draft_of, grants_in
from access.models import Grant, Role, User
from access.permission_table import PermissionTable, groups_of
from access.privileges import assignable_permissions, may_edit_role
from access.reach import reach_of_grants
from audit.doors import RecordedAdmin
from audit.theme import BaseTabularInline, badge, display


class GrantInline(BaseTabularInline):
    """What the role may call."""

    model = Grant
    fields = ("toolset", "tool", "tag", "calls_per_minute")
    autocomplete_fields = ("toolset", "tool")
    extra = 0
    hide_title = True
    verbose_name_plural = "grants: one toolset, tool or tag each"

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        """Without buttons to make and change what is granted: the table has to fit beside what it comes to."""
        formset = super().get_formset(request, obj, **kwargs)
        for name in {"toolset", "tool"} & set(formset.form.base_fields):
            widget: Any = formset.form.base_fields[name].widget
            widget.can_add_related = widget.can_change_related = widget.can_view_related = False
            widget.can_delete_related = False
        return formset


# What a role consists of besides, by the names under which Django tells of it.
_UNKNOWN = {"Group": "groups", "User-group relationship": "user-group relationships"}


def _known(entries: list[Any]) -> list[Any]:
    kept = [each for each in entries if isinstance(each, list) or str(each).partition(":")[0] not in _UNKNOWN]
    return [_known(each) if isinstance(each, list) else each for each in kept]


@admin.register(Role)
class RoleAdmin(RecordedAdmin):
    """Roles: Django permissions for the admin and REST, grants for the calls of tools."""

    list_display = ("name", "description", "grant_count", "member_count")
    search_fields = ("name", "description")
    fieldsets = (
        ("Role", {"fields": ("name", "description")}),
        ("In the admin and by REST", {"fields": ("permissions",)}),
    )
    readonly_fields = ("shown_permissions",)
    change_form_template = "admin/role_form.html"
    inlines = (GrantInline,)
    history_of = ("access.Grant",)
    empty_icon = "badge"
    empty_title = "No roles yet"
    empty_text = "A role says what people and programs may do, and which tools they may call."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Role]:
        """With the number of members and grants."""
        rows: QuerySet[Role] = super().get_queryset(request)
        return rows.annotate(members=Count("user", distinct=True), how_many=Count("grants", distinct=True))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not one's own role, and none that holds more than the editor."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (not isinstance(obj, Role) or may_edit_role(request.user, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not one's own role, and none that holds more than the editor."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (not isinstance(obj, Role) or may_edit_role(request.user, obj))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """As Django collects them, without the group that a role also is, and with names for who loses it."""
        roles = list(objs)
        going, counts, missing, protected = super().get_deleted_objects(roles, request)
        losing = User.objects.filter(groups__in=roles).order_by("username")
        counts = {name: number for name, number in counts.items() if str(name).lower() not in _UNKNOWN.values()}
        return [*_known(going), *(f"Loses the role: {each}" for each in losing)], counts, missing, protected

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may only look is shown the permissions as a table."""
        role, permissions = super().get_fieldsets(request, obj)
        looking = obj is not None and not self.has_change_permission(request, obj)
        return role, (permissions[0], {"fields": ("shown_permissions",)}) if looking else permissions

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Permissions to choose from are those that the editor has, as a table."""
        form = super().get_form(request, obj, change, **kwargs)
        if "permissions" in form.base_fields:
            field: Any = form.base_fields["permissions"]
            field.widget = PermissionTable()
            field.queryset = assignable_permissions(request.user)
            field.label, field.help_text = "Permissions", ""
        return form

    # --- What the role comes to -----------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """With the address that says what the form would come to."""
        preview = self.admin_site.admin_view(self.preview)
        own = [
            path("add/preview/", preview, name="access_role_preview_new"),
            path("<int:object_id>/preview/", preview, name="access_role_preview"),
        ]
        return [*own, *super().get_urls()]

    def preview(self, request: HttpRequest, object_id: int | None = None) -> HttpResponse:
        """What the posted form would give, against what the role gives now. Nothing is saved."""
        role = None if object_id is None else self.get_object(request, str(object_id))
        if object_id is not None and role is None:
            raise Http404
        if not (self.has_add_permission(request) if role is None else self.has_change_permission(request, role)):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        formsets, _ = self._create_formsets(request, role or Role(), change=role is not None)  # type: ignore[attr-defined]
        saved = [] if role is None else list(role.grants.select_related("toolset", "tool"))
        wanted, faulty = grants_in(formsets[0]) if formsets and formsets[0].is_bound else (saved, 0)
        draft = draft_of(reach_of_grants(saved), wanted, faulty)
        return TemplateResponse(request, "admin/role_tools.html", {"draft": draft})

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """With what the role comes to now, and who has it."""
        role = context.get("original")
        saved = [] if role is None else list(role.grants.select_related("toolset", "tool"))
        preview = "admin:access_role_preview_new" if role is None else "admin:access_role_preview"
        more = {
            "draft": draft_of(reach_of_grants(saved), saved),
            "preview_url": reverse(preview, args=() if role is None else (role.pk,)),
            "members": [] if role is None else members_of(request, role),
        }
        return super().render_change_form(request, {**context, **more}, *args, **kwargs)

    @display(description="Members", ordering="members")
    def member_count(self, role: Any) -> int:
        """How many users have it."""
        return int(role.members)

    @display(description="Grants", ordering="how_many")
    def grant_count(self, role: Any) -> int:
        """How many grants it has."""
        return int(role.how_many)

    @display(description="Permissions")
    def shown_permissions(self, role: Role) -> SafeString | str:
        """What may be done with which objects."""
        held = role.permissions.select_related("content_type").order_by("content_type__model", "codename")
        line = '<tr class="align-top"><td class="pr-4 py-1 whitespace-nowrap">{}</td><td class="py-1">{}</td></tr>'
        rows = [
            (row.name, ", ".join([what for what, has in row.standard.items() if has] + [p.name for p in row.others]))
            for group in groups_of(held)
            for row in group.rows
        ]
        return (
            format_html('<table class="text-sm w-full">{}</table>', format_html_join("", line, rows))
            if rows
            else "None."
        )


def members_of(request: HttpRequest, role: Role) -> list[tuple[User, str]]:
    """Who has the role, and their page for those who may see it."""
    users = User.objects.filter(groups=role).order_by("username")
    may = {kind: request.user.has_perm(f"access.view_{kind}") for kind in ("user", "serviceaccount")}
    found = []
    for user in users:
        kind = "serviceaccount" if user.is_service else "user"
        found.append((user, reverse(f"admin:access_{kind}_change", args=(user.pk,)) if may[kind] else ""))
    return found


@admin.register(Grant)
class GrantAdmin(RecordedAdmin):
    """All grants in one list, to find who may call what."""

    list_display = ("role", "kind", "target", "calls_per_minute", "created_at")
    list_display_links = ("role", "target")
    list_filter = ("role",)
    list_select_related = ("role", "toolset", "tool")
    search_fields = ("role__name", "tool__name", "toolset__name", "tag")
    autocomplete_fields = ("role", "toolset", "tool")
    fields = ("role", "toolset", "tool", "tag", "calls_per_minute")
    empty_icon = "key"
    empty_title = "No grants yet"
    empty_text = "Without grants nobody can call any tool."

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As for its role."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (not isinstance(obj, Grant) or may_edit_role(request.user, obj.role))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """As for its role."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (not isinstance(obj, Grant) or may_edit_role(request.user, obj.role))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Only into roles that the editor may change."""
        if not may_edit_role(request.user, obj.role):
            raise PermissionDenied("You cannot change this role.")
        super().save_model(request, obj, form, change)

    @display(description="Kind")
    def kind(self, grant: Grant) -> SafeString:
        """Toolset, tool or tag."""
        return badge("Toolset" if grant.toolset_id else "Tool" if grant.tool_id else "Tag", "blue")

    @display(description="May call")
    def target(self, grant: Grant) -> str:
        """Its name."""
        return str(grant.toolset or grant.tool or grant.tag)
