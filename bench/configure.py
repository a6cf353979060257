"""Gives a new installation what the benchmark calls: the echo server, and a service account that may call its tool."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import django


def _setup() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()


def configure(upstream: str) -> str:
    """Discover the tools of `upstream` and return a token that may call all of them."""
    from access import tokens
    from access.models import Grant, Role, User
    from tools.models import DataSource, EgressRule, Tool
    from tools.sync import sync_source

    EgressRule.objects.get_or_create(network="127.0.0.1/32", port=None, defaults={"note": "The benchmark's upstream."})
    source = DataSource.objects.create(name="bench", kind="mcp", options={"url": upstream})
    sync_source(source)
    tool = Tool.objects.get(name="echo")
    tool.effect = Tool.Effect.READ
    tool.save(update_fields=["effect"])
    role = Role(name="bench")
    role.save()
    for granted in Tool.objects.filter(source=source):
        Grant.objects.create(role=role, tool=granted, calls_per_minute=10_000_000)
    user = User.objects.create(username="bench", is_service=True)
    user.groups.add(role)
    return tokens.issue(user, name="bench", scopes=["tools"])[1]


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
    """Configure the installation that the environment names and print the token as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--upstream")
    parser.add_argument("--listeners", type=int, help="add so many users that listen, to an installation that is there")
    options = parser.parse_args()
    _setup()
    print(json.dumps(add_listeners(options.listeners) if options.listeners else {"token": configure(options.upstream)}))


if __name__ == "__main__":
    main()
