"""Everything that decides calls, compiled into one immutable object with a version.

The call path asks only this object: no query, no lock. What it holds is indexed so that a decision costs the same with
ten tools, grants and tokens as with ten thousand. `load` builds one from the database; what has not changed is taken
over from the one before.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import Max

from access.grants import Catalogue, callable_tools, compiled, stored_rows
from access.models import ApiToken, PolicyVersion, RevokedSession, Role, User
from access.offered import OfferedPolicy, load_offered
from access.offered import SourceEntry as SourceEntry
from audit.masking import known
from audit.models import DataKey
from audit.subjects import subject_key
from keyring.keys import DecryptionError
from tools import exact
from tools.connectors.base import Spec
from tools.connectors.registry import connector_class, source_of
from tools.egress import Rule
from tools.mirrored import mirrored
from tools.models import DataSource, EgressRule, Tool, ToolVersion
from tools.recording import Recording, effective
from tools.recording import compiled as compiled_policy
from tools.schemas import Check, compile_schema

logger = logging.getLogger("access.snapshot")

# What a row can be broken in: one broken source or tool must not take the others with it.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, DecryptionError)


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """A tool that can be called, with what a call needs at hand."""

    id: uuid.UUID
    name: str
    source: SourceEntry
    effect: str
    version_id: int
    fingerprint: bytes
    spec: Spec
    definition: bytes
    title: str
    check: Check
    headers: Mapping[str, tuple[str, ...]]
    # When a call becomes a task: a value of `Tool.AsTask`.
    as_task: str = "slow"
    # What its records keep and show of a call; None where that is the ordinary: everything encrypted.
    recording: Recording | None = None

    @property
    def label(self) -> str:
        """What metrics call it."""
        return self.name


@dataclass(frozen=True, slots=True)
class Member:
    """An active user."""

    id: int
    username: str
    generation: int
    roles: tuple[int, ...]
    role_names: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a user through one of its tokens. `scopes` and `toolset` narrow what the roles allow."""

    user_id: int
    username: str
    roles: tuple[int, ...]
    role_names: str
    token: str
    scopes: frozenset[str]
    toolset: str | None = None
    on_behalf_of: str | None = None
    expires: float | None = None
    token_id: uuid.UUID | None = None

    def is_expired(self) -> bool:
        """Whether its token's time is over."""
        return self.expires is not None and self.expires <= time.time()

    @classmethod
    def of(cls, member: Member, token: str, scopes: frozenset[str], **more: Any) -> Principal:
        """The member as a caller; `more` are the remaining fields."""
        return cls(member.id, member.username, member.roles, member.role_names, token, scopes, **more)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the policy. `lists` and `sessions` are caches that live and die with it."""

    version: int
    tools: Mapping[str, ToolEntry]
    sources: Mapping[uuid.UUID, SourceEntry]
    toolsets: Mapping[str, frozenset[str]]
    # role → tool name → calls per minute
    grants: Mapping[int, Mapping[str, int]]
    members: Mapping[int, Member]
    tokens: Mapping[str, Principal]
    ended_sessions: frozenset[str]
    rules: tuple[Rule, ...]
    # When data keys were last destroyed: writers make new ones then.
    erased_at: datetime | None = None
    offered: OfferedPolicy = field(default_factory=OfferedPolicy)
    # Data sources that could not be reached when they were last checked: what they offer is what they offered before.
    silent: frozenset[uuid.UUID] = frozenset()
    # For calls of tools that there are not.
    recording: Recording | None = None
    lists: dict[object, Any] = field(default_factory=dict)
    sessions: dict[str, Principal] = field(default_factory=dict)


def load(before: Snapshot | None = None) -> Snapshot:
    """Read the whole policy in one consistent view. Blocking: for a thread. Raises django.db.Error.

    This is also when the process learns which secrets must not be written.
    """
    known().refresh()
    key = subject_key()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return _load(before, key)


def _load(before: Snapshot | None, key: bytes) -> Snapshot:
    version = PolicyVersion.objects.values_list("version", flat=True).get()
    sources = _sources(before)
    tools = _recorded(_tools(sources, before), key)
    names = {tool.id: name for name, tool in tools.items()}
    catalogue = Catalogue.of(names)
    grants = list(stored_rows())
    members = _members()
    return Snapshot(
        version=version,
        tools=tools,
        sources=sources,
        toolsets={name: frozenset(chosen) for name, chosen in catalogue.toolsets.values()},
        grants=compiled(grants, catalogue),
        offered=load_offered(sources, grants, key),
        silent=frozenset(DataSource.objects.filter(check_ok=False).values_list("pk", flat=True)),
        members=members,
        tokens=_tokens(members),
        ended_sessions=frozenset(RevokedSession.objects.values_list("sid", flat=True)),
        rules=tuple(Rule.parse(*rule) for rule in EgressRule.objects.values_list("network", "port")),
        erased_at=DataKey.objects.exclude(destroyed_at=None).aggregate(at=Max("destroyed_at"))["at"],
        recording=compiled_policy(effective(), key),
    )


def _sources(before: Snapshot | None) -> dict[uuid.UUID, SourceEntry]:
    found = {}
    for row in DataSource.objects.filter(enabled=True):
        mark = (
            f"{row.kind}|{row.name}|{row.timeout_seconds}|{row.options!r}|{row.__dict__['secrets']!s}|{row.updated_at}"
        )
        known = before.sources.get(row.pk) if before else None
        if known is not None and known.mark == mark:
            found[row.pk] = known
            continue
        try:
            found[row.pk] = SourceEntry(row.kind, source_of(row), mark)
        except _BROKEN as error:
            logger.error("the data source %s cannot be used: %s: %s", row.name, type(error).__name__, error)
    return found


def _tools(sources: Mapping[uuid.UUID, SourceEntry], before: Snapshot | None) -> dict[str, ToolEntry]:
    rows = callable_tools().filter(source_id__in=sources)
    found: dict[str, ToolEntry] = {}
    fresh: list[tuple[uuid.UUID, str, uuid.UUID, str, int, str]] = []
    for row in rows.values_list("id", "name", "source_id", "effect", "current_id", "as_task"):
        known = before.tools.get(row[1]) if before else None
        if (
            known
            and known.id == row[0]
            and known.effect == row[3]
            and known.version_id == row[4]
            and known.as_task == row[5]
            and (known.source is sources[row[2]])
        ):
            found[row[1]] = known
        else:
            fresh.append(row)
    versions = ToolVersion.objects.filter(pk__in=[row[4] for row in fresh]).in_bulk()
    for identifier, name, source_id, effect, version_id, as_task in fresh:
        try:
            compiled_tool = _compiled(identifier, name, sources[source_id], effect, versions[version_id])
            found[name] = replace(compiled_tool, as_task=as_task)
        except _BROKEN as error:
            logger.error("the tool %s cannot be used: %s: %s", name, type(error).__name__, error)
    return dict(sorted(found.items()))


def _recorded(tools: dict[str, ToolEntry], key: bytes) -> dict[str, ToolEntry]:
    """The tools, each with what its policy, its source's and the site's come to."""
    rows = Tool.objects.filter(pk__in=[tool.id for tool in tools.values()])
    said = {row[0]: row[1:] for row in rows.values_list("id", "recording", "source__recording")}
    found = {}
    for name, tool in tools.items():
        try:
            recording = compiled_policy(effective(*said[tool.id]), key)
        except _BROKEN as error:
            logger.error("the tool %s cannot be used: its policy of recording: %s", name, error)
            continue
        found[name] = tool if tool.recording is None and recording is None else replace(tool, recording=recording)
    return found


def _compiled(identifier: uuid.UUID, name: str, source: SourceEntry, effect: str, version: ToolVersion) -> ToolEntry:
    definition = exact.taken(version.definition)
    spec = connector_class(source.kind).ToolSpec.model_validate(version.spec)
    return ToolEntry(
        id=identifier,
        name=name,
        source=source,
        effect=effect,
        version_id=version.pk,
        fingerprint=bytes.fromhex(version.fingerprint),
        spec=spec,
        definition=version.definition.encode(),
        title=str(definition.get("title") or name),
        check=compile_schema(definition["inputSchema"]),
        headers={f"mcp-param-{header.lower()}": path for path, header in mirrored(definition["inputSchema"]).items()},
    )


def _members() -> dict[int, Member]:
    role_names = dict(Role.objects.values_list("pk", "name"))
    roles: dict[int, list[int]] = {}
    for user_id, group_id in User.groups.through.objects.values_list("user_id", "group_id"):
        if group_id in role_names:
            roles.setdefault(user_id, []).append(group_id)
    found = {}
    for pk, username, generation in User.objects.filter(is_active=True).values_list("pk", "username", "generation"):
        mine = tuple(sorted(roles.get(pk, ())))
        found[pk] = Member(pk, username, generation, mine, ",".join(sorted(role_names[role] for role in mine)))
    return found


def _tokens(members: Mapping[int, Member]) -> dict[str, Principal]:
    rows = ApiToken.objects.filter(revoked_at=None).values_list(
        "pk", "digest", "prefix", "user_id", "scopes", "toolset__name", "expires_at"
    )
    found = {}
    for pk, digest, prefix, user_id, scopes, toolset, expires_at in rows:
        if (member := members.get(user_id)) and not _past(expires_at):
            expires = expires_at.timestamp() if expires_at else None
            narrowed = {"toolset": toolset, "expires": expires, "token_id": pk}
            found[digest] = Principal.of(member, prefix, frozenset(scopes), **narrowed)
    return found


def _past(moment: datetime | None) -> bool:
    return moment is not None and moment.timestamp() <= time.time()
