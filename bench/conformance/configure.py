"""Gives a new installation the upstream as a data source, and a service account that may use all of it."""

from __future__ import annotations

import argparse
import json
import os

import django

# When calls of the suite's tools become tasks; those of the others do when they are slow.
_AS_TASK = {
    "at_once": ("slow_compute", "protocol_error_job", "confirm_delete", "multi_input"),
    "always": ("failing_job",),
}


def configure(kind: str, options: dict[str, str]) -> str:
    """A token that may use everything of the source."""
    from access import tokens
    from access.models import Grant, Role, User
    from tools.models import DataSource, EgressRule, Prompt, Resource, Tool, Toolset
    from tools.sync import sync_source

    EgressRule.objects.create(network="127.0.0.1/32", note="The upstream of the conformance suite.")
    source = DataSource.objects.create(name="conformance", kind=kind, options=options)
    refused = sync_source(source).refused
    if refused:
        raise SystemExit(f"These were refused: {refused}")
    for as_task, names in _AS_TASK.items():
        Tool.objects.filter(name__in=names).update(as_task=as_task)
    toolset = Toolset.objects.create(name="everything")
    toolset.tools.set(Tool.objects.all())
    toolset.prompts.set(Prompt.objects.all())
    toolset.resources.set(Resource.objects.all())
    role = Role.objects.create(name="conformance")
    Grant.objects.create(role=role, toolset=toolset, calls_per_minute=10_000_000)
    user = User.objects.create(username="conformance", is_service=True)
    user.groups.add(role)
    return tokens.issue(user, name="conformance", scopes=["tools"])[1]


def main() -> None:
    """Configure the installation that the environment names and print the token as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--options", type=json.loads, required=True)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()
    print(json.dumps({"token": configure(options.kind, options.options)}))


if __name__ == "__main__":
    main()
