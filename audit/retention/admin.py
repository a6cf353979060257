"""Retention in the admin: what is kept for how long, what is held, and each month's way out of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter  # type: ignore[import-untyped]
from unfold.widgets import UnfoldAdminTextInputWidget  # type: ignore[import-untyped]

from audit.doors import ReadOnlyAdmin, RecordedAdmin
from audit.holds import release
from audit.retention import archiving, expiring
from audit.retention.archiving import ArchiveRefused, NotProven
from audit.retention.expiring import ExpiryRefused
from audit.retention.models import STANDARD, Archive, Expiry, LegalHold, Month, RetentionClass
from audit.retention.state import holds_over, leaving_at, state_of, states_of
from audit.retention.stores import StoreError
from audit.theme import badge, display

ARCHIVE_PERMISSION = "audit.archive_records"
ARCHIVE_COLOURS = {"waiting": "grey", "running": "blue", "verified": "green", "failed": "red"}
EXPIRY_COLOURS = {"due": "blue", "proposed": "orange", "approved": "orange", "dropped": "green", "withdrawn": "grey"}


def _size(number: int) -> str:
    return filesizeformat(number).replace("\xa0", " ") if number else "-"


# --- What people decide -----------------------------------------------------------------------------------------------


@admin.register(RetentionClass)
class RetentionClassAdmin(RecordedAdmin):
    """Classes: how many months, and of what."""

    list_display = ("name", "months", "covered", "description")
    ordering = ("name",)
    fields = ("name", "description", "months", "kinds", "tools", "sources")
    formfield_overrides = {
        **RecordedAdmin.formfield_overrides,
        ArrayField: {"widget": UnfoldAdminTextInputWidget},
    }

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The standard class keeps its name, and covers what is left."""
        return ("name", "kinds", "tools", "sources") if obj is not None and obj.name == STANDARD else ()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not the standard class."""
        return super().has_delete_permission(request, obj) and (obj is None or obj.name != STANDARD)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """All but the standard class."""
        super().delete_queryset(request, queryset.exclude(name=STANDARD))

    @display(description="Covers")
    def covered(self, obj: RetentionClass) -> str:
        """In words."""
        parts = (("kinds", obj.kinds), ("tools", obj.tools), ("data sources", obj.sources))
        said = "; ".join(f"{name} {', '.join(values)}" for name, values in parts if values)
        return said or "everything that no other class covers"


class LegalHoldForm(forms.ModelForm):  # type: ignore[type-arg]
    """Its fields, with a period that is checked by the model."""

    class Meta:
        model = LegalHold
        fields = ("name", "matter", "scope", "value", "since", "until", "reason")


@admin.register(LegalHold)
class LegalHoldAdmin(RecordedAdmin):
    """Holds: placed, then released; never changed and never deleted."""

    list_display = ("name", "matter", "held", "state", "placed_by", "placed_at", "released_at")
    list_filter = (("scope", ChoicesDropdownFilter),)
    list_filter_submit = True
    search_fields = ("name", "matter", "value")
    form = LegalHoldForm
    fields = ("name", "matter", "scope", "value", "since", "until", "reason")
    actions = None
    empty_icon = "gavel"
    empty_title = "No legal holds"
    empty_text = "While a hold is in force, no record in its scope is dropped, and nothing of it is erased."
    change_form_outer_before_template = "admin/retention/hold.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: a hold is released, and another one placed."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Whoever is asked who placed it."""
        obj.placed_by = request.user.get_username()
        super().save_model(request, obj, form, change)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """With what became of it, and the form that releases it."""
        context["hold"] = context.get("original")
        context["may_release"] = request.user.has_perm("audit.release_legalhold")
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        """With the address that releases it."""
        view = self.admin_site.admin_view(self.release_view)
        return [path("<uuid:pk>/release/", view, name="audit_legalhold_release"), *super().get_urls()]

    def release_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """End the hold."""
        hold = LegalHold.objects.filter(pk=pk).first()
        if hold is None:
            raise Http404
        if request.method == "POST":
            if not request.user.has_perm("audit.release_legalhold"):
                raise PermissionDenied
            try:
                release(hold, request.POST.get("reason", ""), door="admin", request=request)
                messages.success(request, f"{hold} is released.")
            except ValidationError as error:
                messages.error(request, " ".join(error.messages))
        return HttpResponseRedirect(reverse("admin:audit_legalhold_change", args=(pk,)))

    @display(description="Holds")
    def held(self, hold: LegalHold) -> str:
        """In words."""
        return f"{hold.get_scope_display()}{f': {hold.value}' if hold.value else ''}"

    @display(description="State", ordering="released_at")
    def state(self, hold: LegalHold) -> SafeString:
        """Whether it holds anything."""
        return badge("In force", "orange") if hold.in_force else badge("Released", "grey")


# --- What becomes of it -----------------------------------------------------------------------------------------------


@admin.register(Archive)
class ArchiveAdmin(ReadOnlyAdmin):
    """Cold exports and their state."""

    list_display = ("name", "shown_state", "progress", "size", "asked_by", "asked_at", "finished_at")
    list_filter = (("state", ChoicesDropdownFilter),)
    list_filter_submit = True
    fields = (
        "name", "shown_state", "error", "place", "progress", "size", "files", "resent", "first_seq", "last_seq",
        "manifest", "asked_by", "asked_at", "finished_at",
    )  # fmt: skip
    readonly_fields = fields
    empty_icon = "inventory_2"
    empty_title = "No archives yet"
    empty_text = "A month that is over is exported from its page. What is verified here may leave the ledger later."

    @display(description="Month", ordering="month")
    def name(self, archive: Archive) -> str:
        """In words."""
        return f"{archive.month:%B %Y}"

    @display(description="State", ordering="state")
    def shown_state(self, archive: Archive) -> SafeString:
        """As a badge, with the reason where it failed."""
        return badge(archive.get_state_display(), ARCHIVE_COLOURS[archive.state], archive.error)

    @display(description="Records")
    def progress(self, archive: Archive) -> str:
        """Written, of all."""
        done = archive.state == Archive.State.VERIFIED
        return f"{archive.written:,}" if done else f"{archive.written:,} of {archive.total:,}"

    @display(description="Size", ordering="bytes")
    def size(self, archive: Archive) -> str:
        """Compressed."""
        return _size(archive.bytes)


@admin.register(Expiry)
class ExpiryAdmin(ReadOnlyAdmin):
    """What was proposed, approved and dropped, by whom. What is to be done is done on the page of the month."""

    list_display = ("name", "shown_state", "records", "kept", "proposed_by", "approved_by", "dropped_at")
    list_filter = (("state", ChoicesDropdownFilter),)
    list_filter_submit = True
    list_select_related = ("archive",)
    empty_icon = "auto_delete"
    empty_title = "Nothing has expired yet"
    empty_text = "A job looks every night for records that are past the time of their retention class."

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The page of the month, which has everything."""
        expiry = self.get_object(request, object_id)
        if expiry is None or not self.has_view_permission(request, expiry):
            raise Http404
        return HttpResponseRedirect(f"{month_url(expiry.month)}#expiry")

    @display(description="Month", ordering="month")
    def name(self, expiry: Expiry) -> str:
        """In words."""
        return f"{expiry.month:%B %Y}"

    @display(description="State", ordering="state")
    def shown_state(self, expiry: Expiry) -> SafeString:
        """As a badge, with the problem where there is one."""
        return badge(expiry.get_state_display(), EXPIRY_COLOURS[expiry.state], expiry.problem)


def month_url(month: date, what: str = "change") -> str:
    """A page of the month."""
    return reverse(f"admin:audit_month_{what}", args=(f"{month:%Y-%m-%d}",))


Act = Callable[[Month, HttpRequest], str]


@admin.register(Month)
class MonthAdmin(ReadOnlyAdmin):
    """Months: their size, their state, and on the page of each what is to be done."""

    list_display = ("name", "shown_state", "due", "shown_records", "size", "leaves", "shown_dropped")
    ordering = ("-month",)
    list_per_page = 60
    show_full_result_count = False
    empty_icon = "calendar_month"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """As the database has them."""
        return Month.objects.all()

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With the states of all that are shown."""
        shown = super().get_changelist_instance(request)
        for state in states_of(shown.result_list):
            state.month.state = state  # type: ignore[attr-defined]
        return shown

    # --- Columns ------------------------------------------------------------------------------------------------------

    @display(description="Month", ordering="month")
    def name(self, month: Month) -> str:
        """In words."""
        return str(month)

    @display(description="State")
    def shown_state(self, month: Any) -> SafeString:
        """As a badge."""
        return badge(month.state.label, month.state.colour)

    @display(description="Past their time")
    def due(self, month: Any) -> str:
        """How many records could leave."""
        return f"{month.state.due:,}" if month.state.due else "-"

    @display(description="Records")
    def shown_records(self, month: Month) -> str:
        """About how many."""
        return f"about {month.estimate:,}" if month.present and month.estimate else "-"

    @display(description="Size", ordering="bytes")
    def size(self, month: Month) -> str:
        """With indexes."""
        return _size(month.bytes)

    @display(description="Standard class ends")
    def leaves(self, month: Any) -> str:
        """When records of the standard class are past their time."""
        return f"{month.state.leaves_at:%Y-%m-%d}" if month.present and month.state.leaves_at else "-"

    @display(description="Dropped")
    def shown_dropped(self, month: Month) -> str:
        """Under certificates."""
        return f"{month.dropped:,}" if month.dropped else "-"

    # --- The page of one ----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """With what can be done to a month, and its certificates."""
        acts: dict[str, Act] = {
            "export": self._export,
            "check": self._check,
            "find": self._find,
            "propose": self._propose,
            "approve": self._approve,
            "withdraw": self._withdraw,
            "drop": self._drop,
        }
        own = [
            path(f"<str:key>/{name}/", self.admin_site.admin_view(self._acting(act)), name=f"audit_month_{name}")
            for name, act in acts.items()
        ]
        certificate = path(
            "certificate/<uuid:pk>/", self.admin_site.admin_view(self.certificate_view), name="audit_month_certificate"
        )
        return [certificate, *own, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The month and its way out of the ledger."""
        month = self.get_object(request, object_id.replace("_2D", "-"))
        if month is None:
            raise Http404
        if not self.has_view_permission(request, month):
            raise PermissionDenied
        state = state_of(month)
        context = {
            **self.admin_site.each_context(request),
            "title": str(month),
            "opts": self.opts,
            "original": month,
            "month": month,
            "state": state,
            **_facts(month.month),
            **_ways(request, month, state),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/retention/month.html", context)

    def certificate_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """The certificate and its signature, as a file."""
        expiry = Expiry.objects.filter(pk=pk).first()
        found = expiry and expiring.certificate(expiry)
        if expiry is None or not found:
            raise Http404
        if not request.user.has_perm("audit.view_expiry"):
            raise PermissionDenied
        signature = "sig" in request.GET
        name = f"gap-{expiry.gap}.{'sig' if signature else 'json'}"
        return HttpResponse(
            found[1] if signature else found[0],
            content_type="text/plain; charset=utf-8" if signature else "application/json",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def _acting(self, act: Act) -> Callable[..., HttpResponse]:
        """A view that does something to a month and goes back to its page."""

        def view(request: HttpRequest, key: str) -> HttpResponse:
            month = self.get_object(request, key)
            if month is None:
                raise Http404
            if request.method == "POST":
                try:
                    messages.success(request, act(month, request))
                except (ArchiveRefused, ExpiryRefused, NotProven, StoreError) as refused:
                    messages.error(request, str(refused))
            return HttpResponseRedirect(month_url(month.month))

        return view

    def _export(self, month: Month, request: HttpRequest) -> str:
        _need(request, ARCHIVE_PERMISSION)
        archiving.ask(month.month, door="admin", request=request)
        return f"{month} is being exported. This page says how far it is."

    def _check(self, month: Month, request: HttpRequest) -> str:
        _need(request, ARCHIVE_PERMISSION)
        archive = state_of(month).archive
        if archive is None or archive.state != Archive.State.VERIFIED:
            raise ArchiveRefused("There is no finished export to read back.")
        proven = archiving.check(archive)
        return f"The export was read back: {proven.records:,} records, each as it was sealed."

    def _find(self, month: Month, request: HttpRequest) -> str:
        _need(request, expiring.PERMISSION)
        expiring.find()
        state = state_of(month)
        return f"{state.due:,} records of {month} are past their time." if state.due else "Nothing is past its time."

    def _propose(self, month: Month, request: HttpRequest) -> str:
        expiring.propose(_open(month), request.user, request.POST.get("reason", ""), door="admin", request=request)
        return "Proposed. Somebody else has to approve it."

    def _approve(self, month: Month, request: HttpRequest) -> str:
        expiry = expiring.approve(_open(month), request.user, door="admin", request=request)
        until = f"{expiring.due_at(expiry):%Y-%m-%d %H:%M} UTC"
        return f"Approved. The records stay until {until}, so that others can object and withdraw it."

    def _withdraw(self, month: Month, request: HttpRequest) -> str:
        expiring.withdraw(_open(month), request.user, door="admin", request=request)
        return "Withdrawn. The records stay."

    def _drop(self, month: Month, request: HttpRequest) -> str:
        expiring.ask_to_drop(_open(month), request.user, door="admin")
        return f"The job worker drops records of {month}. This page follows it."


def _need(request: HttpRequest, permission: str) -> None:
    if not request.user.has_perm(permission):
        raise PermissionDenied


def _open(month: Month) -> Expiry:
    found = Expiry.objects.filter(month=month.month, state__in=expiring.OPEN).first()
    if found is None:
        raise ExpiryRefused("Nothing of this month is past its time.")
    return found


def _facts(month: date) -> dict[str, Any]:
    classes = [(each, leaving_at(month, each.months)) for each in RetentionClass.objects.order_by("months")]
    return {
        "classes": [(each, at, at is not None and at <= timezone.now()) for each, at in classes],
        "holds": holds_over(month),
        "earlier": Expiry.objects.filter(month=month, state__in=("dropped", "withdrawn")).order_by("-found_at")[:20],
    }


def _ways(request: HttpRequest, month: Month, state: Any) -> dict[str, Any]:
    """What the viewer may do now, and when what was approved happens."""
    expiry = state.expiry if state.expiry is not None and state.expiry.state in expiring.OPEN else None
    due = expiring.due_at(expiry) if expiry else None
    may_expire = request.user.has_perm(expiring.PERMISSION)
    own = expiry is not None and expiry.proposed_by_id == str(request.user.pk)
    return {
        "expiry": expiry,
        "due_at": due,
        "is_over": expiring.is_over(month.month),
        "may_export": request.user.has_perm(ARCHIVE_PERMISSION),
        "may_expire": may_expire,
        "proposed_yourself": own,
        "may_drop": may_expire and due is not None and due <= timezone.now() and not (expiry and expiry.stage),
        "dropping": expiry.stage if expiry else "",
        "under_way": state.archive is not None and state.archive.state in ("waiting", "running"),
        "percent": _percent(state.archive),
        "act": {
            name: month_url(month.month, name)
            for name in ("export", "check", "find", "propose", "approve", "withdraw", "drop")
        },
    }


def _percent(archive: Archive | None) -> int:
    return min(100, 100 * archive.written // archive.total) if archive is not None and archive.total else 0
