"""The installation without its ledger on the call path, to tell what the ledger costs: its web workers acknowledge
every record at once and write none. The product itself has no such switch.

`python -m bench.unrecorded up …` is `manage.py up …`, whose web workers are `python -m bench.unrecorded`.
"""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import replace
from socket import socket
from unittest.mock import patch

import django
from django.core.management import execute_from_command_line

from audit import ledger
from audit.entry import Entry, uuid7
from audit.ledger import ANSWER_SECONDS, Ledger
from mcpsite import web
from mcpsite.prelude import prepare_up
from mcpsite.supervisor import Program


class Unrecorded(Ledger):
    """Connected as the writer is, and says of every record that it is durable."""

    async def write(self, entry: Entry, within: float = ANSWER_SECONDS) -> uuid.UUID:
        """The id of a record that there is not."""
        return uuid7()

    async def conclude(self, entry: Entry) -> uuid.UUID:
        """As `write`."""
        return uuid7()

    def put(self, entry: Entry) -> None:
        """Forget it."""


def _bring_up() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    prepare_up(sys.argv[2:])
    django.setup()
    from mcpsite import installation

    real = installation.web_programs

    def ours(listener: socket, workers: int, gate: int | None = None) -> list[Program]:
        modules = {web.__name__: "bench.unrecorded"}
        programs = real(listener, workers, gate)
        return [replace(each, command=tuple(modules.get(part, part) for part in each.command)) for each in programs]

    with patch.object(installation, "web_programs", ours):
        execute_from_command_line(sys.argv)


def main() -> None:
    """Bring an installation up, or serve as a web worker of it."""
    if sys.argv[1:2] == ["up"]:
        _bring_up()
        return
    with patch.object(ledger, "Ledger", Unrecorded):
        web.main()


if __name__ == "__main__":
    main()
