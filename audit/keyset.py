"""Pages of a very long list in the admin: by the record to go on from, since to count or skip rows is to read them."""

from __future__ import annotations

import re
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

# The time of a row, and its key as an address has it.
Place = tuple[datetime, str]


class KeysetPaginator(BasePaginator):
    """What the admin's templates ask of a paginator, without counting."""

    template_name = "admin/keyset_pagination.html"

    @cached_property
    def count(self) -> int:
        """Unknown; enough for the templates is that it is not zero."""
        return self.per_page + 1


class KeysetChangeList(BaseChangeList):
    """Newest first by `moment` and `id`; `older_than` and `newer_than` are ids. No other order, no numbers, no counts.

    An index on both columns is what makes it fast. `too_slow` says that the rows were not found in time.
    """

    moment = "at"
    # What may be an id.
    keys = re.compile("[0-9]{1,18}")
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
        return [f"-{self.moment}", "-id"]

    def get_results(self, request: HttpRequest) -> None:
        """One page and whether there is more on either side."""
        older, newer = self._place(OLDER), self._place(NEWER)
        try:
            with at_most(_PATIENCE_MS):
                rows, more_newer, more_older = self._page(older, newer)
        except TooSlow:
            rows, more_newer, more_older, self.too_slow = [], False, False, True
        self._show(request, rows, more_newer, more_older)

    def _page(self, older: Place | None, newer: Place | None) -> tuple[list[Any], bool, bool]:
        most = self.list_per_page
        if newer is not None:
            rows = list(self.queryset.filter(self._beyond(newer, "gt")).order_by(self.moment, "id")[: most + 1])
            return rows[:most][::-1], len(rows) > most, True
        page = self.queryset
        if older is not None:
            page = page.filter(self._beyond(older, "lt"))
        rows = list(page[: most + 1])
        return rows[:most], older is not None, len(rows) > most

    def _beyond(self, place: Place, way: str) -> Q:
        at, key = place
        equal = Q(**{self.moment: at, f"id__{way}": key})
        # The last condition alone lets an index find the beginning.
        return (Q(**{f"{self.moment}__{way}": at}) | equal) & Q(**{f"{self.moment}__{way}e": at})

    def _place(self, name: str) -> Place | None:
        """Time and id of the row that the cursor names. Raises IncorrectLookupParameters when there is none."""
        value = self.params.get(name)
        if value is None:
            return None
        at = None
        if self.keys.fullmatch(value):
            at = self.root_queryset.filter(pk=value).order_by().values_list(self.moment, flat=True).first()
        if at is None:
            what, whats = self.opts.verbose_name, self.opts.verbose_name_plural
            raise IncorrectLookupParameters(
                f"There is no {what} to go on from under `{name}`: these are the newest {whats}, unfiltered."
            )
        return at, value

    def _show(self, request: HttpRequest, rows: list[Any], more_newer: bool, more_older: bool) -> None:
        self.result_list = rows
        self.newest_url = self.get_query_string()
        self.newer_url = self.get_query_string({NEWER: rows[0].pk}) if rows and more_newer else ""
        self.older_url = self.get_query_string({OLDER: rows[-1].pk}) if rows and more_older else ""
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
