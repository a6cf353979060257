"""Every yes and no about calls, over one snapshot."""

from __future__ import annotations

import uuid
from dataclasses import replace

from access.models import Scope
from access.offered import Key, OfferedEntry
from access.snapshot import Principal, Snapshot, ToolEntry
from access.tokens import PREFIX, InvalidToken, claims_of, digest_of

_MOST_SESSIONS = 10_000
_ALL_SCOPES = frozenset(Scope.values)


def principal_of(snapshot: Snapshot, raw: str) -> Principal:
    """Who a bearer token stands for. Raises InvalidToken."""
    principal = snapshot.tokens.get(digest_of(raw)) if raw.startswith(PREFIX) else _session(snapshot, raw)
    if principal is None:
        raise InvalidToken
    if principal.is_expired():
        raise InvalidToken("expired")
    return principal


def _session(snapshot: Snapshot, raw: str) -> Principal:
    if (known := snapshot.sessions.get(raw)) is not None:
        return known
    claims = claims_of(raw)
    member = snapshot.members.get(claims.user_id)
    if member is None or member.generation != claims.generation or claims.session in snapshot.ended_sessions:
        raise InvalidToken
    principal = Principal.of(member, f"session {claims.session[:8]}", _ALL_SCOPES, expires=claims.expires)
    if len(snapshot.sessions) >= _MOST_SESSIONS:
        snapshot.sessions.clear()
    snapshot.sessions[raw] = principal
    return principal


def principal_of_user(snapshot: Snapshot, user_id: int) -> Principal:
    """A user who is logged in to the admin. Raises InvalidToken."""
    member = snapshot.members.get(user_id)
    if member is None:
        raise InvalidToken
    return Principal.of(member, "admin session", _ALL_SCOPES)


def principal_again(
    snapshot: Snapshot, user_id: int, token: str, token_id: uuid.UUID | None, generation: int
) -> Principal | None:
    """Who called before with that token or session, if they still could; for work that outlives its request."""
    if token_id is not None:
        found = (each for each in snapshot.tokens.values() if each.token_id == token_id)
        principal = next(found, None)
        return None if principal is None or principal.is_expired() else principal
    member = snapshot.members.get(user_id)
    session = token.removeprefix("session ")
    if member is None or member.generation != generation or any(s.startswith(session) for s in snapshot.ended_sessions):
        return None
    return Principal.of(member, token, _ALL_SCOPES)


def as_role(principal: Principal, role_id: int, name: str) -> Principal:
    """The same caller with the rights of that one role instead of its own."""
    return replace(principal, roles=(role_id,), role_names=name)


def find(snapshot: Snapshot, principal: Principal, name: str, toolset: str | None) -> tuple[ToolEntry, int] | None:
    """The tool and the principal's budget for it in calls per minute; None when it must look as if it did not exist."""
    if Scope.TOOLS not in principal.scopes or not _within(snapshot, principal, name, toolset):
        return None
    budget = max((snapshot.grants.get(role, {}).get(name, 0) for role in principal.roles), default=0)
    return (snapshot.tools[name], budget) if budget else None


def _within(snapshot: Snapshot, principal: Principal, name: str, toolset: str | None) -> bool:
    return all(
        chosen is None or name in snapshot.toolsets.get(chosen, frozenset()) for chosen in (toolset, principal.toolset)
    )


def visible(snapshot: Snapshot, principal: Principal, toolset: str | None) -> list[ToolEntry]:
    """The tools that `find` would give, by name."""
    names = {name for role in principal.roles for name in snapshot.grants.get(role, {})}
    return [snapshot.tools[name] for name in sorted(names) if find(snapshot, principal, name, toolset)]


# --- Prompts and resources -------------------------------------------------------------------------------------------


def find_offered(
    snapshot: Snapshot, principal: Principal, kind: str, name: str, toolset: str | None
) -> tuple[OfferedEntry, int] | None:
    """The prompt, resource or template of that name, and the principal's budget for it, as `find` has it for tools.

    The URI of a resource that is not listed may be that of a template: the closest that the principal may use.
    """
    offered = snapshot.offered
    entry = offered.entries.get((kind, name))
    if entry is not None:
        budget = _budget(snapshot, principal, entry.key, toolset)
        return (entry, budget) if budget else None
    if kind != "resource" or name in offered.closed:
        return None
    for template in offered.templates:
        assert template.pattern is not None
        if template.pattern.fullmatch(name) and (budget := _budget(snapshot, principal, template.key, toolset)):
            return template, budget
    return None


def _budget(snapshot: Snapshot, principal: Principal, key: Key, toolset: str | None) -> int:
    offered = snapshot.offered
    within = all(
        chosen is None or key in offered.toolsets.get(chosen, frozenset()) for chosen in (toolset, principal.toolset)
    )
    if Scope.TOOLS not in principal.scopes or not within:
        return 0
    return max((offered.grants.get(role, {}).get(key, 0) for role in principal.roles), default=0)


def visible_offered(snapshot: Snapshot, principal: Principal, kind: str, toolset: str | None) -> list[OfferedEntry]:
    """What of that kind `find_offered` would give, by name."""
    keys = {key for role in principal.roles for key in snapshot.offered.grants.get(role, {}) if key[0] == kind}
    return [snapshot.offered.entries[key] for key in sorted(keys) if _budget(snapshot, principal, key, toolset)]
