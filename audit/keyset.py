"""Pages of a very long list in the admin: by the id to go on from, since counting or skipping rows reads them all."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.http import HttpRequest
from django.utils.functional import cached_property

from audit.theme import BaseChangeList, BasePaginator

OLDER, NEWER = "older_than", "newer_than"


class KeysetPaginator(BasePaginator):
    """What the admin's templates ask of a paginator, without counting."""

    template_name = "admin/keyset_pagination.html"

    @cached_property
    def count(self) -> int:
        """Unknown; enough for the templates is that it is not zero."""
        return self.per_page + 1


class KeysetChangeList(BaseChangeList):
    """Newest first by id; `older_than` and `newer_than` are ids. No other order, no page numbers, no counts."""

    def get_filters_params(self, params: Any = None) -> Any:
        """The parameters that are filters."""
        found = super().get_filters_params(params)
        return {name: value for name, value in found.items() if name not in (OLDER, NEWER)}

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """By id only: another column would need an index."""
        return ["-id"]

    def get_results(self, request: HttpRequest) -> None:
        """One page and whether there is more on either side."""
        older, newer = self._cursor(OLDER), self._cursor(NEWER)
        if newer is not None:
            rows = list(self.queryset.filter(id__gt=newer).order_by("id")[: self.list_per_page + 1])
            more_newer, more_older = len(rows) > self.list_per_page, True
            rows = rows[: self.list_per_page][::-1]
        else:
            page = self.queryset if older is None else self.queryset.filter(id__lt=older)
            rows = list(page[: self.list_per_page + 1])
            more_newer, more_older = older is not None, len(rows) > self.list_per_page
            rows = rows[: self.list_per_page]
        self._show(request, rows, more_newer, more_older)

    def _cursor(self, name: str) -> int | None:
        value = self.params.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) < 19):
            raise IncorrectLookupParameters
        return int(value)

    def _show(self, request: HttpRequest, rows: list[Any], more_newer: bool, more_older: bool) -> None:
        self.result_list = rows
        self.newest_url = self.get_query_string(remove=[OLDER, NEWER])
        self.newer_url = self.get_query_string({NEWER: rows[0].pk}, [OLDER]) if rows and more_newer else ""
        self.older_url = self.get_query_string({OLDER: rows[-1].pk}, [NEWER]) if rows and more_older else ""
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = self.multi_page = False
