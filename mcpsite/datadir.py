"""The data directory: where an installation without services of its own keeps its engines' files and its secrets.

It is used only for what the environment does not name: `DATABASE_URL`, `REDIS_URL`, `SECRET_KEY` and `ENCRYPTION_KEYS`
always win. Secrets are generated once, 0600, and never change by themselves. This module imports nothing of Django, so
that settings can use it.
"""

from __future__ import annotations

import base64
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from audit.durable import replace_file

# A unix socket path holds 107 bytes; PostgreSQL adds "/.s.PGSQL.5432.lock".
_LONGEST_SOCKET_DIR = 107 - len("/.s.PGSQL.5432.lock")

DATABASE_NAME = "mcpsite"
SUPERUSER, OWNER_ROLE, SITE_ROLE = "postgres", "mcpsite_owner", "mcpsite_site"
WRITER_ROLE, SEALER_ROLE, READER_ROLE = "mcpsite_writer", "mcpsite_sealer", "mcpsite_reader"
# Role → the secret that holds its password.
PASSWORDS = {
    SUPERUSER: "postgres_password",
    OWNER_ROLE: "owner_password",
    SITE_ROLE: "site_password",
    WRITER_ROLE: "writer_password",
    SEALER_ROLE: "sealer_password",
    READER_ROLE: "reader_password",
}


def default_path() -> Path:
    """`/var/lib/mcpsite` for root, else `$XDG_DATA_HOME/mcpsite` or `~/.local/share/mcpsite`."""
    if os.geteuid() == 0:
        return Path("/var/lib/mcpsite")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mcpsite"


def _new_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


SECRETS: dict[str, Callable[[], str]] = {
    "secret_key": lambda: secrets.token_urlsafe(64),
    "encryption_keys": lambda: f"k1:{_new_key()}",
    **dict.fromkeys(PASSWORDS.values(), lambda: secrets.token_urlsafe(24)),
    "ledger_signing_keys": lambda: f"s1:{_new_key()}",
    "redis_password": lambda: secrets.token_urlsafe(24),
}


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths, secrets and engine URLs of one data directory."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether `create` has completed here once."""
        return all((self.path / "secrets" / name).is_file() for name in SECRETS)

    def create(self) -> None:
        """Make the directory (0700) and every secret that is missing (0600). Safe to repeat; raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self.path / "secrets"
        folder.mkdir(exist_ok=True, mode=0o700)
        for name, make in SECRETS.items():
            if not (folder / name).exists():
                write_private(folder / name, make())
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    def secret(self, name: str) -> str:
        """The secret's value; raises FileNotFoundError before `create`."""
        return (self.path / "secrets" / name).read_text(encoding="utf-8").strip()

    @property
    def run_dir(self) -> Path:
        """Where the sockets are: inside the data directory, or a short path when that one would be too long."""
        inside = self.path.absolute() / "run"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_DIR:
            return inside
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return Path(base) / f"mcpsite-{os.geteuid()}-{sha256(os.fsencode(inside)).hexdigest()[:12]}"

    def database_url(self, role: str) -> str:
        """The URL of the embedded PostgreSQL for one of the roles of `PASSWORDS`."""
        name = "postgres" if role == SUPERUSER else DATABASE_NAME
        return f"postgresql://{role}:{self.secret(PASSWORDS[role])}@{quote(str(self.run_dir), safe='')}/{name}"

    @property
    def redis_socket(self) -> Path:
        """The socket of the embedded Valkey."""
        return self.run_dir / "valkey.sock"

    @property
    def redis_url(self) -> str:
        """The URL of the embedded Valkey."""
        return f"unix://:{self.secret('redis_password')}@{self.redis_socket}?db=0"


def write_private(path: Path, content: str) -> None:
    """Give the file this content, on disk when this returns, readable by the owner only."""
    replace_file(path, content)
