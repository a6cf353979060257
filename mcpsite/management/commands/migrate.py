"""`migrate`, as the owner of the schema, safe to start from several replicas at once."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from audit.ledger import record
from audit.system import process_event
from mcpsite.bootstrap import complete_again, complete_roles
from mcpsite.dbroles import NoSuchRole, Roles, grant

# Any number will do, as long as every replica uses the same one.
_LOCK = 7_035_916_239


def _roles() -> Roles:
    site = settings.DATABASES["default"]["USER"]
    others = {name: each["USER"] for name, each in settings.LEDGER_DATABASES.items()}
    return Roles(site, **{name: user for name, user in others.items() if user != site})


def _applied(database: str) -> set[str]:
    return {f"{app}.{name}" for app, name in MigrationRecorder(connections[database]).applied_migrations()}


def _record(changed: set[str], database: str) -> None:
    """What was applied, or taken back; with the ledger itself taken back there is nowhere to record it."""
    if changed and "audit_record" in connections[database].introspection.table_names():
        record(process_event("migrations_applied", "migrate", migrations=sorted(changed)), using=database)


class Command(migrate.Command):
    """Django's `migrate` over the `owner` connection, under an advisory lock; then the other roles get their
    privileges, and standard roles that held everything get what is new.
    """

    def add_arguments(self, parser: Any) -> None:
        """Django's own, with `owner` as the default database."""
        super().add_arguments(parser)
        parser.set_defaults(database="owner")

    def handle(self, *args: Any, **options: Any) -> str | None:
        """Wait for whoever migrates at this moment, then migrate what is left."""
        if options["check_unapplied"] or options["plan"]:
            return super().handle(*args, **options)
        with connections[options["database"]].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
            try:
                complete = complete_roles()
                before = _applied(options["database"])
                # The admin's checks ask the database about permissions; an empty one cannot answer: they come after.
                result = super().handle(*args, **{**options, "skip_checks": True})
                if options["app_label"] is None:
                    # Only the owner may: the site cannot shorten the time in which others can object.
                    cursor.execute(
                        "UPDATE audit_gap_rule SET waiting = make_interval(hours => %s)", [settings.GAP_WAITING_HOURS]
                    )
                if not settings.ONE_DATABASE_ROLE:
                    grant(cursor, _roles())
                complete_again(complete)
                if before:  # else it is a new database: nothing was changed
                    _record(_applied(options["database"]) ^ before, options["database"])
            except NoSuchRole as error:
                raise CommandError(str(error)) from error
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
        if not options["skip_checks"]:
            self.check(databases=[options["database"]])
        return result
