"""Gives a new installation what the benchmark calls: the echo server, and a service account that may call its tool."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import django
from psycopg import sql


def _setup() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()


def configure(upstream: str) -> dict[str, Any]:
    """Discover the tools of `upstream`, and return a token that may call all of them."""
    from access import tokens
    from access.models import Role, User
    from tools.models import DataSource, EgressRule, Tool
    from tools.sync import sync_source

    EgressRule.objects.get_or_create(network="127.0.0.1/32", port=None, defaults={"note": "The benchmark's upstream."})
    source = DataSource.objects.create(name="bench", kind="mcp", options={"url": upstream})
    sync_source(source)
    role = Role(name="bench")
    role.save()
    _grant(Tool.objects.filter(source=source))
    user = User.objects.create(username="bench", is_service=True)
    user.groups.add(role)
    return {"token": tokens.issue(user, name="bench", scopes=["tools"])[1]}


def _grant(granted: Any) -> None:
    """Let the account call these tools, which read."""
    from django.db import transaction

    from access.models import Grant, Role
    from tools.models import Tool

    role = Role.objects.get(name="bench")
    with transaction.atomic():
        for tool in granted:
            tool.effect = Tool.Effect.READ
            tool.save(update_fields=["effect"])
            Grant.objects.create(role=role, tool=tool, calls_per_minute=10_000_000)


_PURCHASES = """
CREATE SCHEMA bench;
CREATE TABLE bench.purchases AS
    SELECT n AS id, 'Product ' || n AS name, round((n * 7.31)::numeric, 2) AS price,
           timestamptz '2026-01-01' + n * interval '1 hour' AS bought_at
    FROM generate_series(1, 1000) AS n;
ALTER TABLE bench.purchases ADD PRIMARY KEY (id);
CREATE ROLE bench_reader LOGIN PASSWORD 'bench';
GRANT USAGE ON SCHEMA bench TO bench_reader;
GRANT SELECT ON bench.purchases TO bench_reader;
"""
_STATEMENT = "SELECT :text AS text, id, name, price, bought_at FROM bench.purchases ORDER BY id LIMIT 20"


def add_kinds(long: str) -> dict[str, Any]:
    """Let the account also call the echo over stdio, a statement of SQL, and what answers at length at `long`."""
    from django.db import connections

    from tools.configuration import configure as set_up
    from tools.definitions import publish
    from tools.models import DataSource, EgressRule, Tool
    from tools.sync import sync_source

    here = connections["default"].settings_dict
    with connections["owner"].cursor() as cursor:
        cursor.execute(_PURCHASES)
        cursor.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO bench_reader").format(sql.Identifier(here["NAME"])))
    EgressRule.objects.get_or_create(network=f"unix:{here['HOST']}", port=None)
    for name, kind, options, secrets in (
        ("bench-long", "mcp", {"url": long}, {}),
        ("bench-stdio", "mcp-stdio", {"launcher": "echo"}, {}),
        (
            "bench-sql",
            "sql",
            {
                "host": here["HOST"],
                "port": int(here["PORT"]),
                "database": here["NAME"],
                "user": "bench_reader",
                "schema": "bench",
                "tls": "disable",
                "max_connections": 8,
            },
            {"password": "bench"},
        ),
    ):
        source = DataSource(name=name, kind=kind, prefix="stdio_" if kind == "mcp-stdio" else "")
        set_up(source, options, secrets)
        source.save()
        if kind == "sql":
            spec = {
                "title": "Purchases",
                "description": "The first twenty.",
                "statement": _STATEMENT,
                "parameters": [{"name": "text", "type": "string", "description": "Said again."}],
            }
            publish(Tool.objects.create(source=source, name="purchases", spec=spec))
        else:
            sync_source(source)
    _grant(Tool.objects.filter(source__name__startswith="bench-"))
    return {}


def grow(count: int) -> dict[str, Any]:
    """All tools once more under other names, and tokens of so many users who see what the account above sees."""
    from django.db import transaction

    from access import tokens
    from access.models import Role, User
    from tools.models import DataSource, Tool
    from tools.sync import sync_source

    options = DataSource.objects.get(name="bench").options
    again = DataSource.objects.create(name="bench-again", kind="mcp", options=options, prefix="again_")
    sync_source(again)
    _grant(Tool.objects.filter(source=again))
    role, found = Role.objects.get(name="bench"), []
    with transaction.atomic():
        for number in range(count):
            user = User.objects.create(username=f"user-{number}", is_service=True)
            user.groups.add(role)
            found.append(tokens.issue(user, name="bench", scopes=["tools"])[1])
    return {"tokens": found}


def add_listeners(users: int) -> dict[str, Any]:
    """Tokens of so many users who see what the account above sees, one that may change the catalogue, and the name of
    a tool that nobody calls.
    """
    from access import tokens
    from access.models import Grant, Role, User
    from tools.definitions import publish
    from tools.models import DataSource, Tool

    role = Role.objects.get(name="bench")
    source = DataSource.objects.get(name="bench")
    spare = Tool.objects.create(source=source, name="spare", spec={"name": "spare"}, effect=Tool.Effect.READ)
    publish(spare, {"name": "spare", "description": "Comes and goes.", "inputSchema": {"type": "object"}})
    Grant.objects.create(role=role, tool=spare)
    found = []
    for number in range(users):
        user = User.objects.create(username=f"listener-{number}", is_service=True)
        user.groups.add(role)
        found.append(tokens.issue(user, name="bench", scopes=["tools"])[1])
    admin = User.objects.create(username="bench-admin", is_service=True, is_superuser=True)
    return {"tokens": found, "admin": tokens.issue(admin, name="bench", scopes=["read", "write"])[1], "tool": "spare"}


def main() -> None:
    """Configure the installation that the environment names and print what is needed to use it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--upstream", help="the server that is called")
    parser.add_argument("--listeners", type=int, help="add so many users that listen, to an installation that is there")
    parser.add_argument("--more", metavar="URL", help="add sources of other kinds, and what answers at length there")
    parser.add_argument("--grow", type=int, help="double the tools, and add so many users with tokens")
    options = parser.parse_args()
    _setup()
    if options.listeners:
        said = add_listeners(options.listeners)
    elif options.more:
        said = add_kinds(options.more)
    elif options.grow:
        said = grow(options.grow)
    else:
        said = configure(options.upstream)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
