"""`settings_reference`: what the documentation says of environment variables, written from the code that reads them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mcpsite import env
from mcpsite.env import Variable

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
PAGE, EXAMPLE = "docs/configuration.md", ".env.example"

# Defaults that depend on the machine, or on another variable: for people, and as an example.
_SHOWN = {
    "MCPSITE_DATA": ("`/var/lib/mcpsite` for root, else `~/.local/share/mcpsite`", "/var/lib/mcpsite"),
    "ALLOWED_HOSTS": (
        "`localhost,127.0.0.1,[::1]` where PUBLIC_URL is one of them, else empty",
        "localhost,127.0.0.1,[::1]",
    ),
    "LEDGER_SIGNING_KEYS": ("made by `up` in the data directory", ""),
    "LEDGER_STATE_FILE": ("`sealer.json` of the data directory, where there is one", ""),
    "LEDGER_SPOOL_DIR": ("`spool` of the data directory, where there is one", ""),
    "METRICS_DIR": ("`run/metrics` of the data directory, where there is one", ""),
}
# What docker-compose.yml alone reads.
COMPOSE = [
    Variable("POSTGRES_PASSWORD", "Password of PostgreSQL's superuser, for its container. Letters and digits.", ""),
    Variable("DATABASE_OWNER_PASSWORD", "Password of the schema's owner, for the migrations. Letters and digits.", ""),
    Variable("DATABASE_PASSWORD", "Password of the site's database role. Letters and digits.", ""),
    Variable("LEDGER_WRITER_PASSWORD", "Password of the role that only inserts records. Letters and digits.", ""),
    Variable("LEDGER_SEALER_PASSWORD", "Password of the role that seals the ledger. Letters and digits.", ""),
    Variable("LEDGER_READER_PASSWORD", "Password of the role that only reads the ledger. Letters and digits.", ""),
    Variable("REDIS_PASSWORD", "Password of Redis. Letters and digits.", ""),
    Variable("PUBLISH", "Address and port of this machine at which the web container answers.", "127.0.0.1:8000"),
]
_READERS = {
    f"env.{name}"
    for name in ("text", "secret", "late_secret", "flag", "integer", "words", "choice", "url", "structure")
}
_INTRODUCTION = """\
# Copy this file to .env and uncomment what you change. A variable of the process environment wins over this file.
# Instead of NAME, NAME_FILE can name a file whose content is the value. What each is for: docs/configuration.md.
# Made by: manage.py settings_reference
"""
_FOR_CONTAINERS = """\
# --- Containers ---
# docker-compose.yml needs PUBLIC_URL, SECRET_KEY, ENCRYPTION_KEYS, LEDGER_SIGNING_KEYS and these;
# `sh deploy/new-env.sh URL` writes them.
"""


def variables() -> list[Variable]:
    """Every variable that the code reads, also under conditions that do not hold here: those of the settings first."""
    written = {each.name: each for path in _sources() for each in _written(path)}
    return [env.REGISTRY["MCPSITE_DATA"], *(env.REGISTRY.get(name, each) for name, each in written.items())]


def _sources() -> list[Path]:
    folder = settings.BASE_DIR / "mcpsite"
    others = (path for path in sorted(folder.rglob("*.py")) if "tests" not in path.parts)
    return [folder / "settings.py", *others]


def _written(path: Path) -> Iterator[Variable]:
    """The calls of `env.<reader>("NAME", "help", default, …)` in the file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda call: call.lineno):
        if len(node.args) < 2 or ast.unparse(node.func) not in _READERS:
            continue
        name, help, *rest = (each.value if isinstance(each, ast.Constant) else "" for each in node.args)
        default = rest[0] if rest and rest[0] is not None else ""
        yield Variable(str(name), str(help), str(default).lower() if isinstance(default, bool) else str(default))


def table(found: list[Variable]) -> str:
    """The variables as a table in Markdown."""
    lines = ["| Variable | Default | What it is for |", "| --- | --- | --- |"]
    for each in found:
        shown = _SHOWN[each.name][0] if each.name in _SHOWN else f"`{each.default}`" if each.default else "none"
        lines.append(f"| `{each.name}` | {shown} | {each.help} |")
    return "\n".join(lines)


def example(found: list[Variable]) -> str:
    """The variables as a file for `.env`, all of them commented out."""
    return "\n".join([_INTRODUCTION, *map(_entry, found), _FOR_CONTAINERS, *map(_entry, COMPOSE)])


def _entry(variable: Variable) -> str:
    default = _SHOWN[variable.name][1] if variable.name in _SHOWN else variable.default
    return f"# {variable.help}\n#{variable.name}={default}\n"


def page(before: str, found: list[Variable]) -> str:
    """The page with its table brought up to date. Raises ValueError when it has no place for one."""
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no lines {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n\n{table(found)}\n\n{END}{tail}"


class Command(BaseCommand):
    """Writes, or checks, the table of docs/configuration.md and the file .env.example."""

    help = "Write the table of environment variables in docs/configuration.md, and .env.example, from the code."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Whether to write or only to look."""
        parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is out of date")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write what differs."""
        found = variables()
        target = settings.BASE_DIR / PAGE
        wanted = {
            target: page(target.read_text(encoding="utf-8"), found),
            settings.BASE_DIR / EXAMPLE: example(found),
        }
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
        names = " and ".join(str(path.relative_to(settings.BASE_DIR)) for path in stale)
        if stale and options["check"]:
            raise CommandError(f"Out of date: {names}. Run: manage.py settings_reference")
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        self.stdout.write(f"Written: {names}" if stale else "Everything is up to date.")
