"""`first_administrator`: what `up` does by itself, for an installation that is started in another way."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from mcpsite.bootstrap import first_administrator, witness_account


class Command(BaseCommand):
    """Makes the standard roles, and a superuser where there is none."""

    help = "Make the roles administrator and auditor, and the first superuser; print its password, only this once."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Print name and password, or who there is already."""
        user, password = first_administrator()
        if settings.LEDGER_WITNESS_TOKEN:
            witness_account(raw=settings.LEDGER_WITNESS_TOKEN)
        if password is None:
            self.stdout.write(
                f"There is an administrator already: {user}. For a new password: manage.py changepassword {user}"
            )
            return
        self.stdout.write(f"user      {user}\npassword  {password}\nIt is shown only this once.")
