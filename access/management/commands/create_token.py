"""`create_token USERNAME --name …`: an API token from the command line, on record like any other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from access import tokens
from access.login import record_token
from access.models import Scope, User
from audit.changes import differences, stored
from tools.models import Toolset


class Command(BaseCommand):
    """Prints the token, and nothing else, on standard output."""

    help = "Make an API token for a user and print it. It cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        """The user, and what the token is for."""
        parser.add_argument("username", help="User or service account that the token stands for.")
        parser.add_argument("--name", required=True, help="Where it is used, e.g. laptop or ci.")
        parser.add_argument(
            "--scope", action="append", choices=Scope.values, help="What it may be used for; repeat it. Default: tools."
        )
        parser.add_argument("--toolset", help="Narrow the token to the tools of this toolset.")
        parser.add_argument("--days", type=int, help="Days until it expires. Default: never.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Issue and record."""
        user = User.objects.filter(username=options["username"], is_active=True).first()
        if user is None:
            raise CommandError(f"There is no active user {options['username']!r}.")
        toolset = self._toolset(options["toolset"])
        expires_at = timezone.now() + timedelta(days=options["days"]) if options["days"] is not None else None
        try:
            with transaction.atomic():
                token, secret = tokens.issue(
                    user,
                    name=options["name"],
                    scopes=options["scope"] or [Scope.TOOLS.value],
                    toolset=toolset,
                    expires_at=expires_at,
                )
                record_token(None, token, "token_created", differences({}, stored(token)), door="command")
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(secret)

    def _toolset(self, name: str | None) -> Toolset | None:
        if name is None:
            return None
        found = Toolset.objects.filter(name=name).first()
        if found is None:
            raise CommandError(f"There is no toolset {name!r}.")
        return found
