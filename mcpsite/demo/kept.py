"""What the demo keeps in the data directory: secrets that stay the same on every start, and the upstream's folder.

Light on purpose: `manage.py up` asks here what to give to the upstream's process before it imports anything of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from mcpsite.datadir import write_private

TOKEN_VARIABLE, FOLDER_VARIABLE = "DEMO_UPSTREAM_TOKEN", "DEMO_UPSTREAM_DIR"


def kept_secret(data_dir: Path, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
    """The secret of that name; made once and kept 0600. Raises OSError."""
    path = data_dir / "secrets" / name
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    value = make()
    write_private(path, value)
    return value


def upstream_token(data_dir: Path) -> str:
    """The bearer token that the demo's upstream server requires."""
    return kept_secret(data_dir, "demo_upstream_token")


def upstream_environment(data_dir: Path) -> dict[str, str]:
    """What `python -m mcpsite.demo.upstream` must find in its environment; makes the folder for what it writes."""
    folder = data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {TOKEN_VARIABLE: upstream_token(data_dir), FOLDER_VARIABLE: str(folder)}
