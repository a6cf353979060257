"""Unfold as the type checker can follow it: without types of its own, its classes are Django's with another look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from django.http import HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin, TabularInline
    from django.contrib.admin.views.main import ChangeList as BaseChangeList
    from django.core.paginator import Paginator

    BaseAdmin = ModelAdmin[Any]
    BaseTabularInline = TabularInline[Any, Any]
    BasePaginator = Paginator[Any]
    F = TypeVar("F", bound=Callable[..., Any])

    def action(
        *,
        description: str,
        permissions: Iterable[str],
        url_path: str | None = None,
        icon: str | None = None,
        dialog: dict[str, Any] | None = None,
        variant: Any = None,
    ) -> Callable[[F], F]:
        """A button or menu entry of the admin."""

    def display(
        *, description: str, label: Any = None, ordering: str | None = None, boolean: bool | None = None
    ) -> Callable[[F], F]:
        """A column of a list or a line of a page."""
else:
    from django.core.paginator import Paginator as BasePaginator
    from unfold.admin import ModelAdmin as BaseAdmin
    from unfold.admin import TabularInline as BaseTabularInline
    from unfold.decorators import action, display
    from unfold.views import ChangeList as BaseChangeList

_COLOURS = {
    "green": "bg-green-100 text-green-700 dark:bg-green-500/20 dark:text-green-400",
    "red": "bg-red-100 text-red-700 dark:bg-red-500/20 dark:text-red-400",
    "orange": "bg-orange-100 text-orange-700 dark:bg-orange-500/20 dark:text-orange-400",
    "blue": "bg-blue-100 text-blue-700 dark:bg-blue-500/20 dark:text-blue-400",
    "grey": "bg-base-500/8 text-base-700 dark:bg-base-500/20 dark:text-base-200",
}


def badge(text: str, colour: str = "grey", title: str = "") -> SafeString:
    """A small coloured label; `colour` is green, red, orange, blue or grey."""
    return format_html(
        '<span class="badge inline-block font-semibold h-6 leading-6 px-2 rounded-default text-[11px] whitespace-nowrap'
        ' {}" title="{}">{}</span>',
        _COLOURS[colour],
        title,
        text,
    )


def code_block(text: str) -> SafeString:
    """Preformatted text, escaped, in a box that scrolls."""
    return format_html(
        '<pre tabindex="0" class="bg-base-50 border border-base-200 code-block kept-lines mono p-3 rounded-default'
        ' dark:bg-base-800 dark:border-base-700">{}</pre>',
        text,
    )


def mono(text: str) -> SafeString:
    """An identifier in a fixed-width face that may break anywhere."""
    return format_html('<span class="break-anywhere mono">{}</span>', text)


def with_code(text: str) -> SafeString:
    """The text, escaped, with what stands between backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return format_html("{}", text)
    pairs = (("<code>{}</code>" if place % 2 else "{}", part) for place, part in enumerate(parts))
    return SafeString("".join(format_html(form, part) for form, part in pairs))


def dialog(title: str, text: str, button: str, form: type[Any] | None = None) -> dict[str, Any]:
    """What asks before an action of a page is carried out, with a form where there is something to say."""
    return {"title": title, "description": text, "form_submit_text": button, "form_class": form}


def go_to(url: str) -> HttpResponse:
    """Send the browser on from a dialog, which htmx has posted."""
    return HttpResponse(headers={"HX-Redirect": url})


__all__ = [
    "BaseAdmin",
    "BaseChangeList",
    "BasePaginator",
    "BaseTabularInline",
    "action",
    "badge",
    "code_block",
    "dialog",
    "display",
    "go_to",
    "mono",
    "with_code",
]
