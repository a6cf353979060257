"""What pages about users show as tables: what can be used, and tokens."""

from __future__ import annotations

from urllib.parse import urlencode

from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from access.drafts import unchanged
from access.models import ApiToken, User
from access.reach import Reach
from audit.theme import badge


def tools_table(reach: list[Reach]) -> SafeString:
    """What can be used, how often, and through which grants."""
    return SafeString(render_to_string("admin/role_tools.html", {"draft": unchanged(reach)}))


def tokens_table(user: User) -> SafeString:
    """The user's tokens, newest first, and the way to make another one."""
    tokens = user.api_tokens.select_related("toolset", "use")
    rows = [(token, reverse("admin:access_apitoken_change", args=(token.pk,)), state_of(token)) for token in tokens]
    add = f"{reverse('admin:access_apitoken_add')}?{urlencode({'user': user.pk})}"
    return SafeString(render_to_string("admin/user_tokens.html", {"rows": rows, "add": add}))


def state_of(token: ApiToken) -> SafeString:
    """Valid, expired, revoked, or of a user who is off."""
    if token.revoked_at:
        return badge("Revoked", "red")
    if token.expires_at and token.expires_at <= timezone.now():
        return badge("Expired", "orange")
    return badge("Valid", "green") if token.user.is_active else badge("User off", "grey")
