"""Nobody gives what they do not have: the rules by which an administrator may change users, roles and tokens.

A superuser may do everything but remove the last superuser. Anyone else keeps to what they hold themselves: otherwise
the permission to edit users would be the permission to become anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.contrib.auth.models import Group, Permission
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet

from access.models import Role, User
from audit.doors import ReadOnlyAdmin

Actor = Any  # the request's user, of whatever class


def may_manage(actor: Actor, target: User) -> bool:
    """Whether `actor` may change `target`, reset its password or hold its tokens: if it holds no more than `actor`."""
    if actor.is_superuser or actor.pk == target.pk:
        return True
    if target.is_superuser:
        return False
    roles = set(target.groups.values_list("pk", flat=True)) <= set(actor.groups.values_list("pk", flat=True))
    own = {f"{p.content_type.app_label}.{p.codename}" for p in target.user_permissions.select_related("content_type")}
    return roles and own <= actor.get_all_permissions()


def manageable(actor: Actor) -> QuerySet[User]:
    """The users whom `may_manage` allows, in one query."""
    if actor.is_superuser:
        return User.objects.all()
    others = Group.objects.exclude(user=actor).values("pk")
    beyond = Permission.objects.exclude(pk__in=_held(actor).values("pk")).values("pk")
    higher = User.objects.filter(Q(is_superuser=True) | Q(groups__in=others) | Q(user_permissions__in=beyond))
    return User.objects.filter(Q(pk=actor.pk) | ~Q(pk__in=higher.values("pk")))


def assignable_groups(actor: Actor) -> QuerySet[Group]:
    """The roles that `actor` may give to others."""
    roles = Group.objects.filter(role__isnull=False).order_by("name")
    return roles if actor.is_superuser else roles.filter(user=actor)


def meaningful_permissions() -> QuerySet[Permission]:
    """The permissions that something asks for: those on what the admin lists, and what models add of their own.

    Django makes four for every table, also for those of other packages that nobody sees, and `change` for what can
    only be read.
    """
    asked = {("audit", "view_head"), ("audit", "add_cosignature")} | {  # of what has REST resources, and no page
        (model._meta.app_label, codename)
        for model, model_admin in admin.site._registry.items()
        for codename in _asked_of(model._meta, reads_only=isinstance(model_admin, ReadOnlyAdmin))
    }
    wanted = reduce(or_, (Q(content_type__app_label=app, codename=name) for app, name in asked), Q(pk__in=()))
    return Permission.objects.filter(wanted).select_related("content_type")


def _asked_of(opts: Any, *, reads_only: bool) -> Iterator[str]:
    for what in opts.default_permissions:
        if what == "view" or not reads_only:
            yield get_permission_codename(what, opts)
    yield from (codename for codename, _ in opts.permissions)


def assignable_permissions(actor: Actor) -> QuerySet[Permission]:
    """The permissions that `actor` may put into a role or give to others."""
    every = meaningful_permissions().order_by("content_type__app_label", "codename")
    return every if actor.is_superuser else every.filter(pk__in=_held(actor).values("pk"))


def _held(actor: Actor) -> QuerySet[Permission]:
    return Permission.objects.filter(Q(user=actor) | Q(group__user=actor))


def may_edit_role(actor: Actor, role: Role) -> bool:
    """Whether `actor` may change the role: not one of their own, and none that holds more than they do."""
    if actor.is_superuser:
        return True
    if actor.groups.filter(pk=role.pk).exists():
        return False
    held = set(_held(actor).values_list("pk", flat=True))
    return set(role.permissions.values_list("pk", flat=True)) <= held


def check_groups(actor: Actor, target: User | None, wanted: Iterable[Group]) -> None:
    """Refuse roles that `actor` may not give, and any change of their own. Raises ValidationError."""
    if actor.is_superuser:
        return
    before = set(target.groups.values_list("pk", flat=True)) if target is not None and target.pk else set()
    after = {group.pk for group in wanted}
    if target is not None and target.pk == actor.pk and before != after:
        raise ValidationError("Nobody changes their own roles: ask another administrator.", code="own_roles")
    if after - before - set(assignable_groups(actor).values_list("pk", flat=True)):
        raise ValidationError("You can only give roles that you have yourself.", code="not_yours_to_give")


def keep_a_superuser(leaving: Iterable[User]) -> None:
    """Refuse to lose the last active superuser. Call it in the transaction of the change. Raises ValidationError."""
    gone = {user.pk for user in leaving}
    # Locked in one order, so that two administrators cannot remove each other at the same moment.
    active = User.objects.select_for_update().filter(is_superuser=True, is_active=True, is_service=False).order_by("pk")
    pks = {user.pk for user in active}
    if pks and not pks - gone:
        raise ValidationError("This is the last active superuser: make another one first.", code="last_superuser")
