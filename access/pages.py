"""The admin's own pages about whoever is logged in: login, logout, change of password. Each leaves a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, QueryDict
from django.urls import reverse

from access import tokens
from access.attempts import TooManyAttempts
from access.login import LoginRefused, log_in, record_auth
from access.models import User
from audit.changes import record_change, stored

if TYPE_CHECKING:
    from django.contrib.admin.forms import AdminAuthenticationForm as AuthenticationForm
else:
    from unfold.forms import AuthenticationForm


class LoginForm(AuthenticationForm):
    """The admin's login: throttled and recorded, for staff only."""

    def clean(self) -> dict[str, Any]:
        """The user, or an error that does not tell what was wrong."""
        username, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not username or not password or self.request is None:
            return self.cleaned_data
        try:
            self.user_cache = log_in(self.request, username, password, door="admin", staff_only=True)
        except TooManyAttempts as refused:
            raise ValidationError(str(refused), code=refused.code) from refused
        except LoginRefused as refused:
            raise self.get_invalid_login_error() from refused
        return self.cleaned_data


def show_login(request: HttpRequest) -> HttpResponse:
    """Django's login page; whoever came straight to it goes on to the admin's first page."""
    if "next" not in request.GET and "next" not in request.POST:
        wanted: QueryDict = request.GET.copy()
        wanted["next"] = reverse("admin:index")
        request.GET = wanted  # type: ignore[assignment]
    return admin.site.login(request)


def log_out(request: HttpRequest) -> HttpResponse:
    """Django's logout, on record."""
    if request.method == "POST":
        record_auth(request, "logout", door="admin")
    return admin.site.logout(request)


def change_password(request: HttpRequest) -> HttpResponse:
    """Django's page for one's own password, on record; a new password ends all JWT sessions."""
    user = cast(User, request.user)
    with transaction.atomic():
        before = stored(user)
        response = admin.site.password_change(request)
        after_password_change(request, user, before)
    return response


def after_password_change(request: HttpRequest, user: User, before: dict[str, Any]) -> None:
    """Record the change if there was one, and make the JWTs of before invalid."""
    if stored(user).get("password") == before.get("password"):
        return
    tokens.end_all_sessions(user)
    record_change(action="update", obj=user, before=before, after=stored(user), door="admin", request=request)
