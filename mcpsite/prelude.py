"""What `manage.py up` needs before Django reads its settings: a data directory with its secrets in it."""

from __future__ import annotations

import argparse
import sys

from mcpsite import env
from mcpsite.datadir import DataDir, default_path


def prepare_up(arguments: list[str]) -> None:
    """Choose the data directory from `--data` or MCPSITE_DATA and create it with its secrets, unless only help is asked."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data")
    known, rest = parser.parse_known_args(arguments)
    if {"-h", "--help", "--version"} & set(rest):
        return
    if known.data:
        env.set_data_dir(known.data)
    path = DataDir(env.data_dir())
    try:
        path.create()
    except OSError as error:
        sys.exit(f"The data directory {path.path} cannot be used: {error}. Name another one with --data DIR.")
