"""Gives an installation the upstream of the conformance suite twice: as of today, and under `old_` one of 2025-11-25.

A program, since it works on another database than that of the tests. Prints a token for all of it as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import django

from bench.conformance.configure import configure

OLD = "old_"


def main() -> None:
    """The URLs of both are its arguments."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()
    from tools.models import DataSource, Toolset
    from tools.sync import sync_source

    token = configure("mcp", {"url": sys.argv[1]})
    old = DataSource.objects.create(name="conformance-old", kind="mcp", options={"url": sys.argv[2]}, prefix=OLD)
    sync_source(old)
    Toolset.objects.get(name="everything").tools.add(*old.tools.all())
    print(json.dumps({"token": token}))


if __name__ == "__main__":
    main()
