"""Loads the demo: data, sources, tools, roles, people, tokens; only once, so that later changes are respected."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import Group
from django.db import connections, transaction

from access.models import ApiToken, Grant, Role, User
from access.tokens import digest_of, issue, new_secret
from audit.changes import record_change, snapshot, stored
from mcpsite.bootstrap import DOOR, ensure_role, ensure_standard_roles, new_password, record_created
from mcpsite.demo import database, kept
from mcpsite.demo.agents import ensure_agents
from mcpsite.demo.catalogue import (
    OFFICE_PROMPTS,
    OFFICE_RESOURCES,
    OFFICE_TOOLS,
    SQL_TOOLS,
    TIME_PREFIX,
    TIME_TOOLS,
    TOOLSETS,
    USERS,
    SqlTool,
    UpstreamTool,
    UserPlan,
)
from mcpsite.demo.database import DemoRefused
from tools.configuration import Refused, configure, stored_secrets
from tools.connectors.base import ConnectorError
from tools.definitions import publish
from tools.egress import is_inside
from tools.models import DataSource, EgressRule, Prompt, Resource, Tool, Toolset
from tools.sync import check_source, sync_source
from tools.tasks import check_one

__all__ = ["DemoAccess", "DemoRefused", "load_demo"]

DATABASE_SOURCE, UPSTREAM_SOURCE, TIME_SOURCE = "support-desk", "office", "time"
_NOTES = {
    DATABASE_SOURCE: "Demo: the company's database",
    UPSTREAM_SOURCE: "Demo: the upstream MCP server",
    TIME_SOURCE: "Demo: the local MCP server",
}
_LAUNCHER = "time"
_TOKENS, _READER_PASSWORD, _STAFF_PASSWORD = "demo_tokens", "demo_reader_password", "demo_staff_password"
# Any number will do, as long as every replica uses the same one.
_LOCK = 7_035_916_242


@dataclass(frozen=True, slots=True)
class DemoAccess:
    """How to get in: role → API token."""

    tokens: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a data source of the demo is at this moment."""

    name: str
    kind: str
    options: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)
    addresses: frozenset[tuple[str, int | None]]


def load_demo(upstream_url: str, data_dir: Path) -> DemoAccess:
    """Load what is missing of the demo, and follow addresses that have changed. The upstream server must be running.

    `data_dir` keeps the demo's secrets. Raises DemoRefused, OSError and django.db.Error.
    """
    tokens_are_new = not (data_dir / "secrets" / _TOKENS).exists()
    tokens: dict[str, str] = json.loads(kept.kept_secret(data_dir, _TOKENS, _new_tokens))
    upstream = _upstream(upstream_url, data_dir)
    if not database.is_complete():
        with connections["owner"].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            try:
                if not database.is_complete():  # another replica may have been faster
                    _load(upstream, tokens, data_dir)
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
    else:
        _follow([upstream, _database()])
        if tokens_are_new:
            _issue_tokens(tokens)
    return DemoAccess(tokens)


def _new_tokens() -> str:
    return json.dumps({plan.role: new_secret() for plan in USERS if plan.token})


# --- Where things are ------------------------------------------------------------------------------------------------


def _database(password: str | None = None) -> _Source:
    """The database as the site itself reaches it."""
    found = connections["default"].settings_dict
    host, port = found["HOST"] or "/var/run/postgresql", int(found["PORT"] or 5432)
    inside = host.startswith("/") or all(address.startswith("127.") for address in _resolve(host, port))
    options = {
        "host": host,
        "port": port,
        "database": found["NAME"],
        "user": database.reader_name(),
        "schema": database.SCHEMA,
        "tls": "disable" if inside else found["OPTIONS"].get("sslmode", "prefer"),
        "statement_timeout_seconds": 5,
        "max_rows": 500,
        "max_bytes": 1_048_576,
        "max_connections": 5,
    }
    return _Source(DATABASE_SOURCE, "sql", options, {"password": password} if password else {}, _addresses(host, port))


def _upstream(url: str, data_dir: Path) -> _Source:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    secrets = {"bearer_token": kept.upstream_token(data_dir)}
    return _Source(UPSTREAM_SOURCE, "mcp", {"url": url}, secrets, _addresses(parts.hostname or "", port))


def _clock() -> _Source:
    return _Source(TIME_SOURCE, "mcp-stdio", {"launcher": _LAUNCHER}, {}, frozenset())


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DemoRefused(f"The name {host!r} cannot be resolved: {error}.") from error
    return sorted({str(entry[4][0]) for entry in found})


def _addresses(host: str, port: int) -> frozenset[tuple[str, int | None]]:
    """The egress rules that it takes to get there: exactly these addresses. What lies outside needs none."""
    if host.startswith("/"):
        return frozenset({(f"unix:{host}", None)})
    found = map(ip_address, _resolve(host, port))
    return frozenset((f"{address}/{address.max_prefixlen}", port) for address in found if is_inside(address))


# --- Loading ---------------------------------------------------------------------------------------------------------


def _load(upstream: _Source, tokens: dict[str, str], data_dir: Path) -> None:
    password = kept.kept_secret(data_dir, _READER_PASSWORD)
    database.fill(password)
    with transaction.atomic():
        company = _ensure_source(
            _database(password), "The demo company's database: customers, orders, shipments, tickets."
        )
        office = _ensure_source(upstream, "The demo's upstream MCP server: clock, currencies, notes, replies.")
        for plan in SQL_TOOLS:
            _ensure_sql_tool(company, plan)
        _take_tools(office, OFFICE_TOOLS)
        _tag_offered(office)
        if _LAUNCHER in settings.MCP_LAUNCHERS:
            _ensure_clock()
        _ensure_toolsets()
        _ensure_roles()
        for user in USERS:
            _ensure_user(user, data_dir)
        _issue_tokens(tokens)
        ensure_agents()
    check_source(company)
    check_source(office)
    database.mark_complete()


def _ensure_source(wanted: _Source, description: str, prefix: str = "") -> DataSource:
    _allow(wanted)
    if found := DataSource.objects.filter(name=wanted.name).first():
        return _moved(found, wanted)
    source = DataSource(name=wanted.name, kind=wanted.kind, description=description, prefix=prefix)
    _configure(source, wanted.options, wanted.secrets)
    source.save()
    return record_created(source)


def _configure(source: DataSource, options: dict[str, Any], secrets: dict[str, str]) -> None:
    try:
        configure(source, options, secrets)
    except Refused as refused:
        raise DemoRefused(f"The data source {source.name} of the demo cannot be set up: {refused}") from refused


def _ensure_clock() -> None:
    """The local MCP server. Its first check is left to a job: it starts a process of its own, which takes a second."""
    clock = _ensure_source(
        _clock(), "The time in any time zone, from the official MCP server, which runs on this machine.", TIME_PREFIX
    )
    _take_tools(clock, TIME_TOOLS)
    check_one.defer(source_id=str(clock.pk))


def _ensure_sql_tool(source: DataSource, plan: SqlTool) -> None:
    if Tool.objects.filter(name=plan.name).exists():
        return
    tool = Tool.objects.create(
        source=source, name=plan.name, spec=plan.spec, effect=Tool.Effect.READ, tags=list(plan.tags)
    )
    publish(tool)
    record_created(tool)


def _take_tools(source: DataSource, decided: Iterable[UpstreamTool]) -> None:
    """Discover the upstream's tools, and decide what they do: its hints are only hints."""
    try:
        created = sync_source(source).created
    except ConnectorError as error:
        where = source.options.get("url") or source.name
        raise DemoRefused(f"The demo's upstream server cannot be used ({where}): {error}") from error
    plans = {plan.name: plan for plan in decided}
    for tool in Tool.objects.filter(source=source, name__in=created):
        tool.effect, tool.tags = plans[tool.name].effect, list(plans[tool.name].tags)
        tool.save()
        record_created(tool)


def _tag_offered(source: DataSource) -> None:
    """Decide which toolsets the upstream's prompts and resources belong to."""
    for name, tags in OFFICE_PROMPTS.items():
        Prompt.objects.filter(source=source, name=name).update(tags=list(tags))
    for uri, tags in OFFICE_RESOURCES.items():
        Resource.objects.filter(source=source, uri=uri).update(tags=list(tags))


def _ensure_toolsets() -> None:
    for plan in TOOLSETS:
        if Toolset.objects.filter(name=plan.name).exists():
            continue
        toolset = Toolset.objects.create(name=plan.name, title=plan.title, description=plan.description)
        wanted = {"source__name__in": _NOTES, "tags__contains": [plan.name]}
        toolset.tools.set(Tool.objects.filter(**wanted))
        toolset.prompts.set(Prompt.objects.filter(**wanted))
        toolset.resources.set(Resource.objects.filter(**wanted))
        record_created(toolset)


def _ensure_roles() -> None:
    administrator, _ = ensure_standard_roles()
    _ensure_grants(administrator, {plan.name for plan in TOOLSETS})
    for plan in TOOLSETS:
        _ensure_grants(ensure_role(plan.role, plan.role_description), {plan.name})


def _ensure_grants(role: Role, toolsets: set[str]) -> None:
    granted = set(role.grants.filter(toolset__isnull=False).values_list("toolset__name", flat=True))
    for toolset in Toolset.objects.filter(name__in=toolsets - granted):
        record_created(Grant.objects.create(role=role, toolset=toolset))


def _ensure_user(plan: UserPlan, data_dir: Path) -> None:
    if User.objects.filter(username=plan.username).exists():
        return
    user = User(
        username=plan.username,
        first_name=plan.first_name,
        last_name=plan.last_name,
        email="" if plan.is_service else f"{plan.username}@example.com",
        is_service=plan.is_service,
        is_staff=plan.is_staff,
    )
    user.set_password(kept.kept_secret(data_dir, _STAFF_PASSWORD, new_password) if plan.is_staff else None)
    user.save()
    user.groups.set(Group.objects.filter(name=plan.role))
    record_created(user)


def _issue_tokens(tokens: dict[str, str]) -> None:
    """Make the tokens known to the site that it does not know yet."""
    known = set(ApiToken.objects.filter(digest__in=map(digest_of, tokens.values())).values_list("digest", flat=True))
    for plan in USERS:
        raw = tokens.get(plan.role) if plan.token else None
        user = User.objects.filter(username=plan.username).first()
        if raw is None or user is None or digest_of(raw) in known:
            continue
        token, _ = issue(user, name=plan.token or "", scopes=plan.scopes, raw=raw)
        record_created(token)


# --- Following -------------------------------------------------------------------------------------------------------


def _follow(sources: Iterable[_Source]) -> None:
    """Bring addresses and secrets up to date; a source that somebody deleted stays deleted."""
    rows = DataSource.objects.in_bulk(_NOTES, field_name="name")
    for wanted in sources:
        if wanted.name in rows:
            with transaction.atomic():
                _allow(wanted)
                _moved(rows[wanted.name], wanted)


def _moved(row: DataSource, wanted: _Source) -> DataSource:
    was = row.options, row.secrets
    place = {key: wanted.options[key] for key in ("host", "port", "url") if key in wanted.options}
    _configure(row, row.options | place, stored_secrets(row) | wanted.secrets)
    if (row.options, row.secrets) == was:
        return row
    before = stored(row)
    row.save()
    record_change(action="update", obj=row, before=before, after=snapshot(row), door=DOOR)
    return row


def _allow(wanted: _Source) -> None:
    """Let the demo reach exactly these addresses, and no longer those where it was before."""
    note = _NOTES[wanted.name]
    rules = {(rule.network, rule.port): rule for rule in EgressRule.objects.all()}
    for address, rule in rules.items():
        if rule.note == note and address not in wanted.addresses:
            record_change(action="delete", obj=rule, before=snapshot(rule), after={}, door=DOOR)
            rule.delete()
    for network, port in sorted(wanted.addresses - rules.keys(), key=str):
        record_created(EgressRule.objects.create(network=network, port=port, note=note))
