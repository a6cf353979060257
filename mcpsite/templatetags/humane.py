"""Numbers and times as people read them at a glance."""

from __future__ import annotations

from datetime import datetime

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

register = template.Library()


@register.filter
def grouped(number: int) -> str:
    """`1,234,567`."""
    return f"{number:,}"


@register.filter
def ago(moment: datetime) -> SafeString:
    """`5 minutes ago`, with the exact time on hovering."""
    said = timesince(moment, depth=1)
    text = "just now" if said.startswith("0") else f"{said} ago"
    exact = f"{moment:%Y-%m-%d %H:%M:%S %Z}"
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), exact, text)
