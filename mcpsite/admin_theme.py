"""How the admin looks: `UNFOLD` of the settings."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy

# A teal that keeps a contrast of 4.5 to white at 600 and to near-black at 400.
_PRIMARY = {
    "50": "oklch(98.4% .014 180.7)",
    "100": "oklch(95.3% .051 180.8)",
    "200": "oklch(91% .096 180.4)",
    "300": "oklch(85.5% .138 181.1)",
    "400": "oklch(77.7% .152 181.9)",
    "500": "oklch(64% .12 183)",
    "600": "oklch(51.1% .096 186.4)",
    "700": "oklch(43.7% .078 188.2)",
    "800": "oklch(38.6% .063 188.4)",
    "900": "oklch(33% .053 189)",
    "950": "oklch(27.7% .046 192.5)",
}

# Words that tell how careful one has to be, and the colour of their ribbon.
_CAREFUL = {"production": "danger", "prod": "danger", "live": "danger", "staging": "warning", "test": "warning"}


def environment(request: HttpRequest) -> list[str] | None:
    """The ribbon: which installation this is, if somebody has named it."""
    name: str | None = settings.SITE_ENVIRONMENT
    return [name, _CAREFUL.get(name.lower(), "info")] if name else None


def environment_title(request: HttpRequest) -> str | None:
    """What stands before the title in the browser's tab."""
    return f"[{settings.SITE_ENVIRONMENT}]" if settings.SITE_ENVIRONMENT else None


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "mcpsite",
    "SITE_HEADER": "mcpsite",
    "SITE_SUBHEADER": "Control plane for MCP",
    "SITE_SYMBOL": "hub",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("mcpsite/icon.svg")},
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "BORDER_RADIUS": "6px",
    "COLORS": {"primary": _PRIMARY},
    "STYLES": [lambda request: static("mcpsite/admin.css"), lambda request: static("mcpsite/pages.css")],
    "SCRIPTS": [lambda request: static("mcpsite/names.js"), lambda request: static("mcpsite/lists.js")],
    "ENVIRONMENT": environment,
    "ENVIRONMENT_TITLE_PREFIX": environment_title,
    "DASHBOARD_CALLBACK": "mcpsite.dashboard.fill",
    "ACCOUNT": {
        "navigation": [
            {"title": "Saved filters", "link": reverse_lazy("admin:access_savedfilter_changelist")},
            {"title": "Change password", "link": reverse_lazy("admin:password_change")},
        ]
    },
    "SIDEBAR": {
        "show_search": True,
        "command_search": True,
        "show_all_applications": False,
        "navigation": "mcpsite.sidebar.navigation",
    },
}
