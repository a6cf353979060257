"""`python -m mcpsite.ready`: exit code 0 when the site on this machine would serve a call. It imports no Django."""

from __future__ import annotations

import argparse
import http.client
import sys


def answers(
    address: str, port: int | None, path: str, *, timeout: float, headers: dict[str, str] | None = None
) -> bool:
    """Whether a GET of `path` at this server is answered with 200 within `timeout` seconds for each step."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_ready(port: int) -> bool:
    """Whether `/readyz` says so within four seconds."""
    return answers("127.0.0.1", port, "/readyz", timeout=4)


def main() -> None:
    """Ask, and end with the answer."""
    parser = argparse.ArgumentParser(prog="python -m mcpsite.ready", description="Exit code 0 when the site is ready.")
    parser.add_argument("--port", type=int, default=8000, help="port to ask (default: %(default)s)")
    sys.exit(0 if is_ready(parser.parse_args().port) else 1)


if __name__ == "__main__":
    main()
