"""How the admin looks and what its sidebar lists: `UNFOLD` of the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _may(permission: str) -> Callable[[HttpRequest], bool]:
    def allowed(request: HttpRequest) -> bool:
        return request.user.has_perm(permission)

    return allowed


def _item(title: str, icon: str, model: str) -> dict[str, Any]:
    app, name = model.split(".")
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{name}_changelist"),
        "permission": _may(f"{app}.view_{name}"),
    }


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
    "STYLES": [lambda request: static("mcpsite/admin.css")],
    "COMMAND": {"search_models": ["tools.Tool", "tools.DataSource", "tools.Toolset", "access.User", "access.Role"]},
    "SIDEBAR": {
        "show_search": True,
        "command_search": True,
        "show_all_applications": False,
        "navigation": [
            {
                "title": "Catalogue",
                "items": [
                    _item("Data sources", "database", "tools.datasource"),
                    _item("Tools", "build", "tools.tool"),
                    _item("Toolsets", "category", "tools.toolset"),
                    _item("Egress rules", "shield", "tools.egressrule"),
                ],
            },
            {
                "title": "Access",
                "separator": True,
                "items": [
                    _item("Users", "person", "access.user"),
                    _item("Service accounts", "smart_toy", "access.serviceaccount"),
                    _item("Roles", "badge", "access.role"),
                    _item("Grants", "key", "access.grant"),
                    _item("API tokens", "vpn_key", "access.apitoken"),
                ],
            },
            {
                "title": "Activity",
                "separator": True,
                "items": [_item("Records", "receipt_long", "audit.record")],
            },
            {
                "title": "System",
                "separator": True,
                "collapsible": True,
                "items": [
                    _item("Jobs", "schedule", "procrastinate.procrastinatejob"),
                    _item("Ended sessions", "logout", "access.revokedsession"),
                    {
                        "title": "API documentation",
                        "icon": "api",
                        "link": reverse_lazy("api-docs"),
                        "permission": lambda request: request.user.is_staff,
                    },
                ],
            },
        ],
    },
}
