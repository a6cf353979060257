"""Users, roles, grants and tokens in the admin. What somebody may give to others is decided by `access.privileges`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import BooleanRadioFilter  # type: ignore[import-untyped]

from access import role_admin, saved_filter_admin, token_admin  # noqa: F401 - register
from access.models import ServiceAccount, User
from access.pages import LoginForm, after_password_change
from access.privileges import assignable_groups, keep_a_superuser, may_manage
from access.reach import reach_of_user
from access.tables import tokens_table, tools_table
from audit.bulk import BulkAdmin, bulk_action
from audit.changes import stored
from audit.theme import badge, display

if TYPE_CHECKING:
    from django.contrib.auth.forms import AdminPasswordChangeForm, UserChangeForm
    from django.contrib.auth.forms import AdminUserCreationForm as UserCreationForm
else:
    from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

admin.site.login_form = LoginForm
admin.site.unregister(Group)


class KeepsASuperuser:
    """Mixed into the forms of users."""

    def clean(self: Any) -> Any:
        """Refuse to switch off or demote the last superuser."""
        cleaned = super().clean()  # type: ignore[misc]
        user = self.instance
        stays = self.cleaned_data.get("is_superuser", True) and self.cleaned_data.get("is_active", True)
        if user.pk and user.is_superuser and user.is_active and not stays:
            keep_a_superuser([user])
        return cleaned


class UserForm(KeepsASuperuser, UserChangeForm):  # type: ignore[type-arg]
    """A person."""


class ServiceAccountForm(KeepsASuperuser, forms.ModelForm):  # type: ignore[type-arg]
    """A program."""


class ManagedUsers(BulkAdmin):
    """What the admins of people and of programs share: nobody gives what they do not have."""

    privileged = ("is_superuser", "is_staff", "user_permissions")
    history_of = ("access.ApiToken",)
    actions = ("activate", "deactivate")

    class Media:
        css: ClassVar = {"all": ("mcpsite/activity.css",)}

    @bulk_action("Switch on", consequence="They can log in, and their tokens that are not revoked count again.")
    def activate(self, request: HttpRequest, user: User, given: Any) -> None:
        """Back in."""
        user.is_active = True

    @bulk_action("Switch off", danger=True, consequence="Within a second they are logged out and their tokens refused.")
    def deactivate(self, request: HttpRequest, user: User, given: Any) -> None:
        """Out, but not oneself: nobody should lock themselves out by a wide selection."""
        if user.pk == request.user.pk:
            raise ValidationError("This is you.")
        user.is_active = False

    def save_bulk(self, request: HttpRequest, obj: models.Model) -> None:
        """As for any object; the last superuser stays."""
        if isinstance(obj, User) and not obj.is_active:
            keep_a_superuser([obj])
        super().save_bulk(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only users who hold no more than the editor."""
        allowed = super().has_change_permission(request, obj)
        return allowed and (not isinstance(obj, User) or may_manage(request.user, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only users who hold no more than the editor."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (not isinstance(obj, User) or may_manage(request.user, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Privileges are for superusers; one's own roles are for others."""
        fixed = list(super().get_readonly_fields(request, obj))
        if not cast(User, request.user).is_superuser:
            fixed += [*self.privileged, *(["groups"] if obj is not None and obj.pk == request.user.pk else [])]
        return fixed

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Roles to choose from are those that the editor may give, and those that the user has."""
        form = super().get_form(request, obj, change, **kwargs)
        if "groups" in form.base_fields:
            field: Any = form.base_fields["groups"]
            given = Group.objects.none() if obj is None else obj.groups.all()
            choices = assignable_groups(request.user).values("pk").union(given.values("pk"))
            field.queryset = Group.objects.filter(pk__in=choices).order_by("name")
            getattr(field.widget, "widget", field.widget).verbose_name = "roles"
            field.label, field.help_text = "Roles", "What the user may do, and which tools it may call."
        return form

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """As Django collects them; the last superuser is protected."""
        victims = list(objs)
        deleted, counts, missing, protected = super().get_deleted_objects(victims, request)
        try:
            with transaction.atomic():
                keep_a_superuser(victims)
        except ValidationError as error:
            protected = [*protected, error.messages[0]]
        return deleted, counts, missing, protected

    @display(description="Roles")
    def role_list(self, user: User) -> str:
        """Separated by commas."""
        return ", ".join(group.name for group in user.groups.all()) or "-"

    @display(description="State", ordering="is_active")
    def state(self, user: User) -> SafeString:
        """Active or not."""
        return badge("Active", "green") if user.is_active else badge("Off", "grey")

    @display(description="Through all roles")
    def effective_tools(self, user: User) -> SafeString | str:
        """What can be used, how often, and through which grant of which role."""
        return tools_table(reach_of_user(user))

    @display(description="Records")
    def activity(self, user: User) -> SafeString:
        """The way to what the user did."""
        place = f"{reverse('admin:audit_record_changelist')}?{urlencode({'actor': user.get_username()})}"
        return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">What {} did</a>', place, user)

    @display(description="API tokens")
    def token_list(self, user: User) -> SafeString | str:
        """The tokens that stand for the user, and where to make one."""
        return tokens_table(user)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ManagedUsers):  # type: ignore[type-arg, misc]
    """People."""

    form = UserForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "full_name", "email", "role_list", "rank", "state", "last_login")
    list_filter = (("is_active", BooleanRadioFilter), ("is_staff", BooleanRadioFilter), "groups")
    readonly_fields = ("last_login", "date_joined", "effective_tools", "token_list", "activity")
    fieldsets = (
        ("User", {"fields": ("username", "password", "first_name", "last_name", "email", "is_active")}),
        ("What the user may do", {"fields": ("groups", "is_staff", "is_superuser", "user_permissions")}),
        ("What can be used", {"fields": ("effective_tools",)}),
        ("Tokens", {"fields": ("token_list",)}),
        ("Activity", {"fields": ("activity", "last_login", "date_joined")}),
    )
    empty_icon = "person"

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """People only: programs have a list of their own."""
        rows: QuerySet[User] = super().get_queryset(request)
        return rows.filter(is_service=False).prefetch_related("groups")

    @display(description="Name")
    def full_name(self, user: User) -> str:
        """First and last name."""
        return user.get_full_name() or "-"

    @display(description="Rank", ordering="is_superuser")
    def rank(self, user: User) -> SafeString | str:
        """Superusers and staff stand out."""
        if user.is_superuser:
            return badge("Superuser", "red")
        return badge("Staff", "blue") if user.is_staff else "-"

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Django's page, on record; a new password ends all JWT sessions."""
        with transaction.atomic():
            user = self.get_object(request, id)
            before = {} if user is None else stored(user)
            response = super().user_change_password(request, id, form_url)
            if user is not None:
                after_password_change(request, user, before)
        return response


@admin.register(ServiceAccount)
class ServiceAccountAdmin(ManagedUsers):
    """Programs: they have roles and tokens, and no password."""

    form = ServiceAccountForm
    list_display = ("username", "role_list", "token_count", "state", "date_joined")
    list_filter = (("is_active", BooleanRadioFilter), "groups")
    search_fields = ("username", "email")
    filter_horizontal = ("groups",)
    readonly_fields = ("effective_tools", "token_list", "activity", "date_joined")
    fieldsets = (
        ("Service account", {"fields": ("username", "email", "is_active", "groups")}),
        ("What can be used", {"fields": ("effective_tools",)}),
        ("Tokens", {"fields": ("token_list",)}),
        ("Activity", {"fields": ("activity", "date_joined")}),
    )
    add_fieldsets = (("Service account", {"fields": ("username", "email", "groups")}),)
    empty_icon = "smart_toy"
    empty_title = "No service accounts yet"
    empty_text = "A service account stands for a program: give it a role, then a token to call tools with."

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """With the number of tokens that are not revoked."""
        rows: QuerySet[User] = super().get_queryset(request)
        live = Count("api_tokens", filter=models.Q(api_tokens__revoked_at=None))
        return rows.annotate(live_tokens=live).prefetch_related("groups")

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """A new one is a program, whose password can never be right."""
        if not change:
            obj.is_service = True
            obj.set_unusable_password()
        super().save_model(request, obj, form, change)

    @display(description="Tokens", ordering="live_tokens")
    def token_count(self, user: Any) -> int:
        """How many tokens it has that are not revoked."""
        return int(user.live_tokens)
