"""What `manage.py up` needs before Django reads its settings: its data directory, and the options that are settings."""

from __future__ import annotations

import argparse
import atexit
import sys
import tempfile
import time
from pathlib import Path

from mcpsite import env
from mcpsite.datadir import DataDir

LOCAL_HOSTS = ("127.0.0.1", "0.0.0.0", "localhost", "::", "::1")  # noqa: S104
STARTED = time.monotonic()
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000


def prepare_up(arguments: list[str]) -> None:
    """Give the settings what `up` was told, and make its data directory with its secrets, unless only help is asked."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data")
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", default=DEFAULT_PORT)
    parser.add_argument("--workers")
    known, rest = parser.parse_known_args(arguments)
    env.load_file(Path(__file__).resolve().parent.parent / ".env")
    if {"-h", "--help", "--version"} & set(rest):
        _lend_installation()
        return
    if known.data:
        env.override("MCPSITE_DATA", known.data)
    _create(DataDir(env.data_dir()))
    if not env.is_set("PUBLIC_URL"):
        env.override("PUBLIC_URL", local_url(known.host, known.port))
    if sys.stdout.isatty() and not env.is_set("LOG_FORMAT"):
        env.override("LOG_FORMAT", "text")
    if known.workers:
        env.override("WEB_WORKERS", known.workers)


def port(text: str) -> int:
    """The number of a port, as an argument of a command. Raises ArgumentTypeError."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return number


def local_url(host: str, port: int | str) -> str:
    """The URL at which this machine reaches a server that listens on `host:port`."""
    if host in LOCAL_HOSTS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _lend_installation() -> None:
    """Help needs settings, and settings an installation: lend one for as long as it is read, if there is none."""
    if not DataDir(env.data_dir()).exists:
        lent = tempfile.TemporaryDirectory(prefix="mcpsite-help-")
        atexit.register(lent.cleanup)
        env.override("MCPSITE_DATA", lent.name)
        _create(DataDir(env.data_dir()))


def _create(data: DataDir) -> None:
    try:
        data.create()
    except OSError as error:
        sys.exit(f"The data directory {data.path} cannot be used: {error}. Name another one with --data DIR.")
