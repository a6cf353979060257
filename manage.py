#!/usr/bin/env python
"""Django's command line for mcpsite."""

import os
import sys


def main() -> None:
    """Run one management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    if sys.argv[1:2] == ["up"]:
        from mcpsite.prelude import prepare_up

        prepare_up(sys.argv[2:])
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
