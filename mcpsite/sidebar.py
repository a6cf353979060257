"""What the sidebar lists, by job: only what the viewer may open, with a number where something wants attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from audit.outside.contradictions import unsettled
from audit.summary import refused_since
from mcpsite.doctor import SEES_CHECKS
from tools.models import DataSource

_BADGES_KEPT_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Place:
    """A list of the admin. `badge` is a key of `badges`."""

    title: str
    icon: str
    model: str
    badge: str = ""

    @property
    def changelist(self) -> str:
        """The name of the list's address."""
        return f"admin:{self.model.replace('.', '_').lower()}_changelist"


# The groups that stand first for auditors.
AUDIT = ("Audit", "Retention")
# Models of applications that are not installed are left out.
GROUPS: tuple[tuple[str, tuple[Place, ...]], ...] = (
    (
        "Catalogue",
        (
            Place("Data sources", "database", "tools.DataSource", "failing"),
            Place("Tools", "build", "tools.Tool"),
            Place("Prompts", "chat", "tools.Prompt"),
            Place("Resources", "description", "tools.Resource"),
            Place("Toolsets", "category", "tools.Toolset"),
            Place("Tasks", "hourglass_top", "gateway.Task"),
            Place("Egress rules", "shield", "tools.EgressRule"),
        ),
    ),
    (
        "Access",
        (
            Place("Users", "person", "access.User"),
            Place("Service accounts", "manage_accounts", "access.ServiceAccount"),
            Place("Roles", "badge", "access.Role"),
            Place("Grants", "key", "access.Grant"),
            Place("API tokens", "vpn_key", "access.ApiToken"),
            Place("Ended sessions", "logout", "access.RevokedSession"),
        ),
    ),
    (
        "Audit",
        (
            Place("Records", "receipt_long", "audit.Record", "refused"),
            Place("Privacy", "shield_person", "audit.DataKey"),
            Place("Exports", "download", "audit.Export"),
            Place("Evidence packs", "inventory_2", "audit.EvidencePack"),
            Place("Streams", "cell_tower", "audit.Stream"),
            Place("Evidence", "verified", "audit.Head"),
            Place("Anchors", "anchor", "audit.Anchor"),
            Place("Contradictions", "report", "audit.Contradiction", "contradicted"),
        ),
    ),
    (
        "Retention",
        (
            Place("Months", "calendar_month", "audit.Month"),
            Place("Retention classes", "schedule", "audit.RetentionClass"),
            Place("Legal holds", "gavel", "audit.LegalHold"),
            Place("Archives", "inventory_2", "audit.Archive"),
            Place("Expiries", "auto_delete", "audit.Expiry"),
        ),
    ),
    (
        "Agents",
        (
            Place("Agents", "smart_toy", "agents.Agent"),
            Place("Runs", "play_circle", "agents.Run"),
            Place("Model providers", "neurology", "agents.ModelProvider"),
        ),
    ),
    (
        "System",
        (Place("Jobs", "schedule", "procrastinate.ProcrastinateJob"),),
    ),
)


def audits_only(user: Any) -> bool:
    """Whether somebody may read the ledger and change nothing outside of it."""
    if not user.is_authenticated or user.is_superuser or not user.has_perm("audit.view_record"):
        return False
    names = (each.partition(".") for each in user.get_all_permissions())
    return all(app == "audit" or name.startswith("view_") for app, _, name in names)


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The groups as unfold takes them."""
    numbers = badges()
    # With a parameter, so that it is the dashboard also for who is sent on to the auditor's page.
    groups = [_group("", [_item("Dashboard", "dashboard", f"{reverse('admin:index')}?days=1")])]
    groups += [_group(title, [_shown(place, numbers) for place in opened(request, places)]) for title, places in GROUPS]
    if request.user.has_perm("audit.view_record"):
        overview = _item("Overview", "verified_user", reverse("audit-overview"))
        groups = [_with(group, overview) if group["title"] == "Audit" else group for group in groups]
    if request.user.has_perm(SEES_CHECKS):
        groups[-1]["items"].append(_item("Doctor", "stethoscope", reverse("doctor-page")))
    groups[-1]["items"].append(_item("API documentation", "api", reverse("api-docs")))
    if audits_only(request.user):
        groups.sort(key=lambda group: (group["title"] != "", group["title"] not in AUDIT))
    return [group for group in groups if group["items"]]


def opened(request: HttpRequest, places: Iterable[Place]) -> list[Place]:
    """Those of the places that exist and that the viewer may open."""
    return [
        place
        for place in places
        if (found := admin_of(place.model))
        and found.has_module_permission(request)
        and found.has_view_or_change_permission(request)
    ]


def admin_of(label: str) -> admin.ModelAdmin[Any] | None:
    """The admin of a model by its label; None when there is none."""
    try:
        model = apps.get_model(label)
    except LookupError:
        return None
    return admin.site.get_model_admin(model) if admin.site.is_registered(model) else None


def badges() -> dict[str, int]:
    """What wants attention: refusals of the last hour, and data sources in use whose last check failed."""
    found: dict[str, int] | None = cache.get("sidebar.badges")
    if found is None:
        found = {
            "refused": refused_since(timezone.now() - timedelta(hours=1)),
            "contradicted": len(unsettled()),
            "failing": DataSource.objects.filter(enabled=True, check_ok=False).count(),
        }
        cache.set("sidebar.badges", found, _BADGES_KEPT_SECONDS)
    return found


def _group(title: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"title": title, "separator": bool(title), "items": items}


def _with(group: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    return {**group, "items": [first, *group["items"]]}


def _item(title: str, icon: str, link: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": link, "permission": lambda request: True}


_SAID = {
    "contradicted": "held against the ledger",
    "refused": "refused in the last hour",
    "failing": "could not be reached when last checked",
}


def _shown(place: Place, numbers: dict[str, int]) -> dict[str, Any]:
    item = _item(place.title, place.icon, reverse(place.changelist))
    if number := numbers.get(place.badge, 0):
        item |= {"badge": _short(number), "badge_title": f"{number:,} {_SAID[place.badge]}"}
    return item


def _short(number: int) -> str:
    return f"{number}" if number < 1000 else f"{number // 1000}k"
