"""Saved filters in the admin: saved from a list, opened, renamed, shared and deleted here."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from access import saved_filters
from access.models import SavedFilter
from access.privileges import may_manage
from access.saved_filters import NotSavable
from audit.changes import record_change, stored
from audit.doors import RecordedAdmin
from audit.theme import badge, display, mono


@admin.register(SavedFilter)
class SavedFilterAdmin(RecordedAdmin):
    """One's own, and those of others that are for everybody."""

    list_display = ("name", "of_list", "user", "state", "opening")
    list_filter = ("shared",)
    search_fields = ("name",)
    readonly_fields = ("of_list", "shown_query", "user", "created_at")
    fields = ("name", "shared", *readonly_fields)
    empty_icon = "bookmark"
    empty_title = "No saved filters yet"
    empty_text = "Filter, search or sort any list, then choose Saved filters above it to keep it under a name."

    def get_queryset(self, request: HttpRequest) -> QuerySet[SavedFilter]:
        """What concerns the viewer; whoever is to be deleted takes their filters along."""
        rows: QuerySet[SavedFilter] = super().get_queryset(request)
        return rows.filter(pk__in=saved_filters.visible_to(request).values("pk")).select_related("user")

    def get_urls(self) -> list[URLPattern]:
        """With the address that a list's form is sent to."""
        save = self.admin_site.admin_view(self.save_view)
        return [path("save/", save, name="access_savedfilter_save"), *super().get_urls()]

    def save_view(self, request: HttpRequest) -> HttpResponse:
        """Keep a list and go back to it."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        label, query = request.POST.get("model", ""), request.POST.get("query", "")
        model_admin = saved_filters.admin_for(request, label)
        if model_admin is None:
            raise PermissionDenied
        try:
            with transaction.atomic():
                saved = saved_filters.save(
                    request, label, query, request.POST.get("name", ""), shared="shared" in request.POST
                )
                record_change(action="create", obj=saved, before={}, after=stored(saved), door="admin", request=request)
            messages.success(request, f"The list is saved as {saved.name}.")
        except NotSavable as error:
            messages.error(request, f"The list was not saved. {error}")
        opts = model_admin.opts
        back = reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")
        return HttpResponseRedirect(f"{back}?{saved_filters.kept(query)}")

    # --- Who may what -------------------------------------------------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Everybody in the admin."""
        return True

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Everybody; `get_queryset` says which."""
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never here: they are saved from lists."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """One's own."""
        return obj is None or obj.user_id == request.user.pk

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """One's own, and those of users whom one may delete: they go along."""
        if self.has_change_permission(request, obj):
            return True
        return request.user.has_perm("access.delete_user") and may_manage(request.user, obj.user)

    # --- Columns ------------------------------------------------------------------------------------------------------

    @display(description="List", ordering="model")
    def of_list(self, saved: SavedFilter) -> str:
        """What the list is of."""
        name = str(apps.get_model(saved.model)._meta.verbose_name_plural)
        return name[:1].upper() + name[1:]

    @display(description="Seen by", ordering="shared")
    def state(self, saved: SavedFilter) -> SafeString:
        """Everybody or its owner."""
        return badge("Everybody", "blue") if saved.shared else badge("Owner", "grey")

    @display(description="Open")
    def opening(self, saved: SavedFilter) -> SafeString:
        """The way there."""
        link = '<a class="text-primary-600 dark:text-primary-500" href="{}">Open list</a>'
        return format_html(link, saved_filters.address(saved))

    @display(description="Filters")
    def shown_query(self, saved: SavedFilter) -> SafeString:
        """As in the address."""
        return mono(saved.query)
