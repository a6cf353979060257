"""Pages of a very long list in the admin: by the record to go on from, since to count or skip rows is to read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import Q
from django.http import HttpRequest
from django.utils.functional import cached_property

from audit.patience import TooSlow, at_most
from audit.theme import BaseChangeList, BasePaginator

OLDER, NEWER = "older_than", "newer_than"
_PATIENCE_MS = 5_000

Place = tuple[datetime, int]


class KeysetPaginator(BasePaginator):
    """What the admin's templates ask of a paginator, without counting."""

    template_name = "admin/keyset_pagination.html"

    @cached_property
    def count(self) -> int:
        """Unknown; enough for the templates is that it is not zero."""
        return self.per_page + 1


class KeysetChangeList(BaseChangeList):
    """Newest first by `at` and `id`; `older_than` and `newer_than` are ids. No other order, no page numbers, no counts.

    `too_slow` says that the rows were not found in time.
    """

    too_slow = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        """As filtered. Where a page begins is no filter, and not kept when filters change: no form repeats it."""
        request.GET = kept = request.GET.copy()  # type: ignore[assignment]
        for name in (OLDER, NEWER):
            self.filter_params.pop(name, None)
            kept.pop(name, None)
        return super().get_queryset(request, exclude_parameters)

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """By time only: another column would need an index."""
        return ["-at", "-id"]

    def get_results(self, request: HttpRequest) -> None:
        """One page and whether there is more on either side."""
        older, newer = self._place(OLDER), self._place(NEWER)
        try:
            with at_most(_PATIENCE_MS):
                rows, more_newer, more_older = self._page(older, newer)
        except TooSlow:
            rows, more_newer, more_older, self.too_slow = [], False, False, True
        self._show(request, rows, more_newer, more_older)

    def _page(
        self, older: tuple[datetime, int] | None, newer: tuple[datetime, int] | None
    ) -> tuple[list[Any], bool, bool]:
        most = self.list_per_page
        if newer is not None:
            at, key = newer
            after = Q(at__gt=at) | Q(at=at, id__gt=key)
            rows = list(self.queryset.filter(after, at__gte=at).order_by("at", "id")[: most + 1])
            return rows[:most][::-1], len(rows) > most, True
        page = self.queryset
        if older is not None:
            at, key = older
            page = page.filter(Q(at__lt=at) | Q(at=at, id__lt=key), at__lte=at)
        rows = list(page[: most + 1])
        return rows[:most], older is not None, len(rows) > most

    def _place(self, name: str) -> Place | None:
        """Time and id of the record that the cursor names. Raises IncorrectLookupParameters when there is none."""
        value = self.params.get(name)
        if value is None:
            return None
        number = int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else -1
        at = self.root_queryset.filter(pk=number).order_by().values_list("at", flat=True).first()
        if at is None:
            raise IncorrectLookupParameters(
                f"There is no record to go on from under `{name}`: these are the newest records, unfiltered."
            )
        return at, number

    def _show(self, request: HttpRequest, rows: list[Any], more_newer: bool, more_older: bool) -> None:
        self.result_list = rows
        self.newest_url = self.get_query_string()
        self.newer_url = self.get_query_string({NEWER: rows[0].pk}) if rows and more_newer else ""
        self.older_url = self.get_query_string({OLDER: rows[-1].pk}) if rows and more_older else ""
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
