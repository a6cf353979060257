"""`python -m mcpsite.ready`: exit code 0 when the site on this machine would serve a call. It imports no Django."""

from __future__ import annotations

import argparse
import http.client
import sys


def is_ready(port: int) -> bool:
    """Whether `/readyz` says so within four seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Ask, and end with the answer."""
    parser = argparse.ArgumentParser(prog="python -m mcpsite.ready", description="Exit code 0 when the site is ready.")
    parser.add_argument("--port", type=int, default=8000, help="port to ask (default: %(default)s)")
    sys.exit(0 if is_ready(parser.parse_args().port) else 1)


if __name__ == "__main__":
    main()
