"""How REST lists: pages by keyset, filters, search and order, each of them strict about what it is asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import django_filters.rest_framework as filters  # type: ignore[import-untyped]
from django import forms
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.template import loader
from rest_framework import exceptions
from rest_framework.filters import SearchFilter
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

MOST, USUAL = 500, 100
_OF_EVERY_LIST = frozenset({"limit", "cursor", "ordering", "format"})
_LONGEST_SEARCH = 200


# --- Which -----------------------------------------------------------------------------------------------------------


class _YesOrNoField(forms.NullBooleanField):
    def to_python(self, value: Any) -> bool | None:  # type: ignore[override]
        if value in (None, ""):
            return None
        if value not in ("true", "false"):
            raise ValidationError("Give true or false.", code="invalid_choice")
        return bool(value == "true")


class YesOrNoFilter(filters.BooleanFilter):  # type: ignore[misc]
    """`true` or `false`; the usual filter takes any other word for no filter at all."""

    field_class = _YesOrNoField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "widget": forms.TextInput})


class FilterSet(filters.FilterSet):  # type: ignore[misc]
    """What the filters of a viewset are made from, unless it brings a class of its own."""

    FILTER_DEFAULTS = {**filters.FilterSet.FILTER_DEFAULTS, models.BooleanField: {"filter_class": YesOrNoFilter}}


class Filters(filters.DjangoFilterBackend):  # type: ignore[misc]
    """Exact filters of lists. A parameter that is none is refused: a misspelt one would show what was not asked for."""

    filterset_base = FilterSet

    def filter_queryset(self, request: Request, queryset: Any, view: Any) -> Any:
        """The rows that were asked for; of one object, nothing is filtered. Raises ValidationError."""
        if view.detail:
            return queryset
        filterset = self.get_filterset(request, queryset, view)
        known = {*_OF_EVERY_LIST, *(filterset.filters if filterset is not None else ())}
        if getattr(view, "search_fields", None):
            known.add("search")
        given = request.query_params
        # The form of DRF's pages sends what was not filled in as well.
        empty = (
            [name for name in known - _OF_EVERY_LIST if given.get(name) == ""]
            if request.accepted_renderer.format == "json"
            else []
        )
        _refuse_parameters(set(given) - known, "unknown_parameter", "There is no such parameter.")
        _refuse_parameters(empty, "empty_parameter", "Give a value, or leave the parameter out.")
        return super().filter_queryset(request, queryset, view)


def _refuse_parameters(names: Collection[str], code: str, said: str) -> None:
    if names:
        raise exceptions.ValidationError({name[:80]: [exceptions.ErrorDetail(said, code)] for name in sorted(names)})


class Search(SearchFilter):
    """Words that must all occur in one of the view's `search_fields`."""

    def filter_queryset(self, request: Request, queryset: Any, view: Any) -> Any:
        """The rows that were searched for. Raises ValidationError."""
        if view.detail:
            return queryset
        if len(request.query_params.get(self.search_param, "")) > _LONGEST_SEARCH:
            raise exceptions.ValidationError({"search": [f"Give at most {_LONGEST_SEARCH} characters."]})
        return super().filter_queryset(request, queryset, view)


# --- In which order, and how many ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Order:
    """One column, with the primary key to tell equal values apart: so every row has its own place."""

    column: str
    descending: bool

    @classmethod
    def parse(cls, text: str) -> _Order:
        return cls(text.removeprefix("-"), text.startswith("-"))

    def __str__(self) -> str:
        return f"-{self.column}" if self.descending else self.column

    def columns(self, backwards: bool) -> list[str]:
        sign = "-" if self.descending != backwards else ""
        return [f"{sign}{self.column}", *([f"{sign}pk"] if self.column != "pk" else [])]

    def beyond(self, place: list[Any], backwards: bool) -> Q:
        way = "lt" if self.descending != backwards else "gt"
        value, pk = place
        if self.column == "pk":
            return Q(**{f"pk__{way}": pk})
        # The first condition alone lets an index find the beginning.
        equal = Q(**{self.column: value}, **{f"pk__{way}": pk})
        return Q(**{f"{self.column}__{way}e": value}) & (Q(**{f"{self.column}__{way}": value}) | equal)

    def place_of(self, row: Any) -> list[Any]:
        value = getattr(row, self.column)
        plain = value.isoformat() if isinstance(value, datetime) else value
        return [plain if isinstance(plain, int) else str(plain), row.pk if isinstance(row.pk, int) else str(row.pk)]


class InvalidCursor(exceptions.APIException):
    """A cursor of another list, order or user, or none at all."""

    status_code = 400
    default_code = "invalid_cursor"
    default_detail = "This cursor does not belong here: begin at the first page, without a cursor."


class Pages(BasePagination):
    """Pages by keyset: no counting, no offsets. A cursor is signed for its user, its path and its order.

    A view names its usual order in `ordering` and further columns in `ordering_fields`. They must never be null.
    """

    next: str | None = None
    previous: str | None = None
    template = "rest_framework/pagination/previous_and_next.html"

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """One page of the rows. Raises ValidationError and InvalidCursor."""
        limit = _limit(request)
        self._url = request.build_absolute_uri()
        self._order = _order(request, view)
        self._signer = signing.Signer(salt=f"{request.path}|{request.user.pk}|{self._order}")
        backwards, place = self._begin(request)
        rows = queryset.order_by(*self._order.columns(backwards))
        if place:
            rows = rows.filter(self._order.beyond(place, backwards))
        found = list(rows[: limit + 1])
        more, page = len(found) > limit, found[:limit]
        if backwards:
            page.reverse()
        before, after = (more, True) if backwards else (place is not None, more)
        self.display_page_controls = before or after
        self.previous = self._link(page[0], backwards=True) if page and before else None
        self.next = self._link(page[-1], backwards=False) if page and after else None
        return page

    def _begin(self, request: Request) -> tuple[bool, list[Any] | None]:
        given = request.query_params.get("cursor")
        if given is None:
            return False, None
        try:
            backwards, *place = self._signer.unsign_object(given)
        except (signing.BadSignature, ValueError, TypeError) as error:
            raise InvalidCursor from error
        return backwards, place

    def _link(self, row: Any, backwards: bool) -> str:
        cursor = self._signer.sign_object([backwards, *self._order.place_of(row)])
        return replace_query_param(remove_query_param(self._url, "cursor"), "cursor", cursor)

    def get_paginated_response(self, data: Any) -> Response:
        """The page with the addresses of its neighbours."""
        return Response({"next": self.next, "previous": self.previous, "results": data})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The page as OpenAPI."""
        link = {"type": ["string", "null"], "format": "uri"}
        return {
            "type": "object",
            "required": ["next", "previous", "results"],
            "properties": {
                "next": {**link, "description": "Address of the next page; null at the end."},
                "previous": {**link, "description": "Address of the page before; null at the beginning."},
                "results": schema,
            },
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """The parameters as OpenAPI."""
        limit = {"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL}
        orders = sorted(order for column in _columns(view) for order in (column, f"-{column}"))
        parameters = (
            ("limit", limit, "How many to list."),
            ("cursor", {"type": "string"}, "As `next` and `previous` of another page have it."),
            (
                "ordering",
                {"type": "string", "enum": orders},
                "The column to order by; with `-` from the last to the first.",
            ),
        )
        return [
            {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
            for name, schema, description in parameters
        ]

    def to_html(self) -> str:
        """The links to the neighbours, for DRF's pages."""
        context = {"previous_url": self.previous, "next_url": self.next}
        return loader.get_template(self.template).render(context)


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(USUAL))
    if not (given.isascii() and given.isdecimal() and len(given) < 9 and 1 <= int(given) <= MOST):
        raise exceptions.ValidationError({"limit": [f"Give a whole number from 1 to {MOST}."]})
    return int(given)


def _columns(view: Any) -> list[str]:
    usual = [_Order.parse(view.ordering[0]).column] if getattr(view, "ordering", ()) else ["pk"]
    return list(dict.fromkeys([*usual, *getattr(view, "ordering_fields", ())]))


def _order(request: Request, view: Any) -> _Order:
    usual = getattr(view, "ordering", None) or ("pk",)
    order = _Order.parse(request.query_params.get("ordering", usual[0]))
    if order.column not in _columns(view):
        choices = ", ".join(_columns(view))
        raise exceptions.ValidationError(
            {
                "ordering": [
                    exceptions.ErrorDetail(
                        f"Choose one of {choices}, or one of them with “-” before it.", "invalid_choice"
                    )
                ]
            }
        )
    return order
