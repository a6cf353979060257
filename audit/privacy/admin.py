"""The page on which a person is erased, a value is sought, and readings are looked through."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from audit.arguments import PERMISSION as MAY_READ
from audit.arguments import READ, SOUGHT, ReadingRefused
from audit.doors import ReadOnlyAdmin, detail_of
from audit.holds import Held
from audit.models import DataKey, Record
from audit.privacy.erasure import PERMISSION as MAY_ERASE
from audit.privacy.erasure import ErasureRefused, Survey, erase, survey
from audit.privacy.occurrence import MOST_RECORDS, Question, Report, search
from audit.story import address_of
from audit.subjects import USER, UnknownSubject

_LISTED = 50
_LATELY = timedelta(days=90)
_WORDS = {READ: "read", SOUGHT: "sought a value", "subject_erased": "erased"}


class SubjectForm(forms.Form):
    """Whose data."""

    kind = forms.CharField(max_length=40, initial=USER)
    value = forms.CharField(max_length=500, strip=False)


class ErasureForm(SubjectForm):
    """Whose, why, and that it is meant."""

    reason = forms.CharField(max_length=500)
    again = forms.CharField(max_length=500, strip=False)


class SearchForm(forms.Form):
    """What, where and why."""

    tool = forms.CharField(max_length=64, required=False)
    record = forms.UUIDField(required=False)
    argument = forms.CharField(max_length=200, required=False)
    what = forms.ChoiceField(choices=[("value", ""), ("arguments", ""), ("result", "")])
    candidate = forms.CharField(max_length=1_000_000, strip=False)
    since = forms.DateTimeField(required=False)
    until = forms.DateTimeField(required=False)
    reason = forms.CharField(max_length=500)


@dataclass(frozen=True, slots=True)
class Reading:
    """Who did what with the data of others, and why."""

    record: Record
    url: str
    did: str
    about: str
    reason: str


@admin.register(DataKey)
class PrivacyAdmin(ReadOnlyAdmin):
    """One page in place of a list: a key tells nobody anything."""

    def get_urls(self) -> list[URLPattern]:
        """With the addresses that erase and search."""
        own = [
            path("erase/", self.admin_site.admin_view(self.erase_view), name="audit_datakey_erase"),
            path("search/", self.admin_site.admin_view(self.search_view), name="audit_datakey_search"),
        ]
        return [*own, *super().get_urls()]

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whoever may do, or look through, any of it."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Of a single key there is nothing to see."""
        return obj is None and any(map(request.user.has_perm, ("audit.view_record", MAY_READ, MAY_ERASE)))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """There is no page of a key."""
        return HttpResponseRedirect(self._address())

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The page; `kind` and `value` ask what there is of a subject."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return self._page(request)

    def erase_view(self, request: HttpRequest) -> HttpResponse:
        """What there is to erase, then the erasure itself."""
        if not request.user.has_perm(MAY_ERASE):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseRedirect(self._address())
        form = ErasureForm(request.POST) if "reason" in request.POST else SubjectForm(request.POST)
        if not form.is_valid():
            messages.error(request, "Name the person, and to erase give the reason and the name once more.")
            return self._page(request, status=400)
        given = form.cleaned_data
        try:
            found = survey(given["kind"], given["value"], door="admin", request=request)
            if "reason" not in given:
                return self._page(request, found=found, value=given["value"])
            if given["again"] != given["value"]:
                messages.error(request, "The two names differ: nothing was erased.")
                return self._page(request, status=400, found=found, value=given["value"])
            done = erase(given["kind"], given["value"], given["reason"], door="admin", request=request)
        except (UnknownSubject, ErasureRefused, Held) as refused:
            messages.error(request, f"Nothing was erased. {refused}")
            return self._page(request, status=400, value=given["value"])
        messages.success(request, f"Erased: {done.keys} keys of {len(done.months)} months are destroyed.")
        return HttpResponseRedirect(self._address())

    def search_view(self, request: HttpRequest) -> HttpResponse:
        """Whether a value occurs."""
        if not request.user.has_perm(MAY_READ):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseRedirect(self._address())
        form = SearchForm(request.POST)
        if not form.is_valid():
            said = "; ".join(f"{name}: {' '.join(map(str, errors))}" for name, errors in form.errors.items())
            messages.error(request, f"Nothing was sought. {said}")
            return self._page(request, status=400, asked=form)
        try:
            report = search(question_of(form.cleaned_data), form.cleaned_data["reason"], door="admin", request=request)
        except ValueError as refused:  # ReadingRefused too
            messages.error(request, f"Nothing was sought. {refused}")
            return self._page(request, status=429 if isinstance(refused, ReadingRefused) else 400, asked=form)
        return self._page(request, asked=form, report=report)

    def _address(self) -> str:
        return reverse("admin:audit_datakey_changelist")

    def _page(
        self,
        request: HttpRequest,
        *,
        status: int = 200,
        found: Survey | None = None,
        value: str = "",
        asked: SearchForm | None = None,
        report: Report | None = None,
    ) -> HttpResponse:
        records = reverse("admin:audit_record_changelist")
        context = {
            **self.admin_site.each_context(request),
            "title": "Privacy",
            "opts": self.opts,
            "found": found,
            "value": value,
            "asked": asked.data
            if asked
            else {"tool": request.GET.get("tool", ""), "record": request.GET.get("record", "")},
            "report": report,
            "most": f"{MOST_RECORDS:,}",
            "kinds": _kinds(),
            "readings": _readings() if request.user.has_perm("audit.view_record") else None,
            "all_readings": f"{records}?{urlencode({'code': READ})}",
            "may_erase": request.user.has_perm(MAY_ERASE),
            "may_read": request.user.has_perm(MAY_READ),
        }
        request.current_app = self.admin_site.name
        response = TemplateResponse(request, "admin/privacy/page.html", context, status=status)
        response["Cache-Control"] = "no-store"
        return response


def question_of(given: dict[str, Any]) -> Question:
    """The question that a filled-in form asks."""
    return Question(
        **{given["what"]: given["candidate"]},
        argument=given.get("argument") or "",
        tool=given.get("tool") or "",
        record=str(given.get("record") or ""),
        since=given.get("since"),
        until=given.get("until"),
    )


def _kinds() -> list[str]:
    """What subjects there are besides users."""
    rows = DataKey.objects.exclude(subject_kind__in=(USER, "none")).order_by().values_list("subject_kind", flat=True)
    return sorted(set(rows.distinct()))


def _readings() -> list[Reading]:
    rows = Record.objects.filter(code__in=tuple(_WORDS), at__gte=timezone.now() - _LATELY).order_by("-at", "-id")
    return [_reading(each) for each in rows.defer("ct")[:_LISTED]]


def _reading(record: Record) -> Reading:
    detail = detail_of(record)
    about = str(detail.get("label") or "")
    return Reading(record, address_of(record.pk), _WORDS[record.code], about, str(detail.get("reason") or ""))
