"""`run_agent`: run an agent from the terminal, and see what it does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from access.models import User
from agents.events import events
from agents.models import Agent, Run
from agents.runs import RunRefused, cancel_run, start_run

_DOOR = "command"


class Command(BaseCommand):
    """Starts the run and follows its events; the agent worker does the work."""

    help = "Run an agent, wait for it, and print its steps. The agent worker must be running."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("agent", help="name of the agent")
        parser.add_argument("input", help="what it shall do")
        parser.add_argument("--as", dest="starter", metavar="USER", help="who starts it (default: a superuser)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Start, follow, and end with the run's own success. Raises CommandError."""
        starter = _starter(options["starter"])
        agent = Agent.objects.filter(name=options["agent"]).first()
        if agent is None:
            raise CommandError(f"There is no agent {options['agent']!r}.")
        try:
            run = start_run(agent, options["input"], starter=starter, door=_DOOR)
        except (RunRefused, ValidationError) as error:
            raise CommandError(" ".join(getattr(error, "messages", [str(error)]))) from error
        self.stdout.write(f"run {run.pk}")
        try:
            asyncio.run(self._follow(run))
        except KeyboardInterrupt as error:
            cancel_run(run, actor=starter, door=_DOOR)
            raise CommandError("Cancelled.") from error
        run.refresh_from_db()
        if run.status != Run.Status.SUCCEEDED:
            raise CommandError(f"{run.code}: {run.message}")
        self.stdout.write(str(run.output))

    async def _follow(self, run: Run) -> None:
        """Until it has ended; a stream that has reached its time is followed by the next."""
        seen, over = 0, False
        while not over:
            async for block in events(run.pk, seen):
                fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if ": " in line)
                over = fields.get("event") == "end"
                if fields.get("event") == "step":
                    step = orjson.loads(fields["data"])
                    seen = step["number"]
                    self.stdout.write(_line(step))


def _line(step: dict[str, Any]) -> str:
    if step["kind"] == "tool":
        arguments = json.dumps(step["content"]["arguments"], ensure_ascii=False)
        return f"{step['number']:>3}  {step['tool']} {arguments}  {step['code']}, record {step['record']}"
    asked = ", ".join(call["tool"] for call in step["content"]["calls"])
    return f"{step['number']:>3}  model {'asks for ' + asked if asked else 'answers'}, record {step['record']}"


def _starter(name: str | None) -> User:
    users = User.objects.filter(is_active=True)
    found = users.filter(username=name) if name else users.filter(is_superuser=True).order_by("pk")
    if (user := found.first()) is None:
        raise CommandError(f"There is no active user {name!r}." if name else "There is no active superuser.")
    return user
