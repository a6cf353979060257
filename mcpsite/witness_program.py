"""The witness that `up` runs beside the site: its directory, its key, its user, and what it cannot prove there."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from urllib.parse import urlsplit

from django.conf import settings

from audit.witness import Folder, prepare
from mcpsite import env
from mcpsite.datadir import DataDir
from mcpsite.supervisor import Program, account

TOKEN_FILE = "witness_token"  # noqa: S105 - the name of a file
# Some machines have a user for it; `daemon` is the one that every Linux has for programs that own files.
_USERS = ("mcpsite-witness", "daemon")


def announce(data: DataDir) -> None:
    """Make the key of our witness, and let every process that starts from here on take its signatures."""
    host = urlsplit(settings.PUBLIC_URL).netloc
    own = prepare(Folder(data.path / "witness"), f"{host}/witness").public
    others = [each for each in settings.LEDGER_WITNESSES if each.name != own.name]
    env.override("LEDGER_WITNESSES", ",".join(str(each) for each in (*others, own)))


def program(data: DataDir, order: int, url: str) -> Program:
    """What runs it, with nothing of the site's environment."""
    user = witness_user()
    token = data.path / "secrets" / TOKEN_FILE
    options = ["--state", str(data.path / "witness"), "--url", url, "--token-file", str(token)]
    if urlsplit(url).netloc != urlsplit(settings.PUBLIC_URL).netloc:
        options += ["--host", urlsplit(settings.PUBLIC_URL).netloc]
    return Program(
        name="witness",
        order=order,
        command=(sys.executable, "-m", "audit.witness", "run", *options, *(("--user", user) if user else ())),
        environment={"PATH": os.defpath, "PYTHONUNBUFFERED": "1"},
        directory=settings.BASE_DIR,
    )


@cache
def witness_user() -> str | None:
    """Whom the witness becomes when we are root, and may become somebody; None when it stays who we are."""
    return next((name for name in _USERS if _can_become(name)), None)


def _can_become(name: str) -> bool:
    try:
        user = pwd.getpwnam(name)
        done = subprocess.run(["/bin/sh", "-c", ":"], env={"PATH": os.defpath}, **account(user.pw_uid, user.pw_gid))
    except (KeyError, OSError, subprocess.SubprocessError):
        return False
    return os.geteuid() == 0 and done.returncode == 0


def shortcomings(names: Sequence[str]) -> list[str]:
    """What the witnesses of these names cannot prove, as sentences; none when there is nothing to say."""
    if any(not each.endswith("/witness") for each in names):
        return []
    if not names:
        return ["No witness signs the heads: run one on another machine, and name its key in LEDGER_WITNESSES."]
    said = ["The only witness runs on this machine: who is root here can change what it remembers. Run another one."]
    if settings.DATA_DIR.exists and witness_user() is None:
        said.append("It runs as the same user as the site, so the site could change what it remembers.")
    return said
