"""What a person reads at the terminal, and what a program reads in the ready file, when an installation has come up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from tools.clients import PLACEHOLDER, mcp_servers

# Whose token is shown to people and makes the first call.
SHOWN_ROLE = "support_agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a running installation. `new_password` is set only on the start that made the administrator."""

    public_url: str
    user: str
    password: str | None
    new_password: str | None = field(repr=False)
    tokens: dict[str, str] = field(repr=False)

    @property
    def shown_token(self) -> str | None:
        """The token for people to try, if the demo made any."""
        return self.tokens.get(SHOWN_ROLE) or next(iter(self.tokens.values()), None)

    def ready_document(self) -> dict[str, Any]:
        """The content of the ready file."""
        return {
            "admin_url": f"{self.public_url}/admin/",
            "admin_user": self.user,
            "admin_password": self.password,
            "api_url": f"{self.public_url}/api/v1/",
            "mcp_url": f"{self.public_url}/mcp",
            "health_url": f"{self.public_url}/health",
            "metrics_url": f"{self.public_url}/metrics",
            "tokens": self.tokens,
        }


class Progress:
    """Prints one short line a step, with the seconds that it took."""

    def __init__(self, out: TextIO, started: float) -> None:
        """`started` is when it all began, in seconds of the monotonic clock."""
        self._out = out
        self._started = started

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def say(self, text: str = "") -> None:
        """Print `text` as a line."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def bold(self, text: str) -> str:
        """`text`, standing out where the output is a terminal."""
        return f"\x1b[1m{text}\x1b[0m" if self._out.isatty() else text

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Announce `label` at a terminal; print it with its seconds when the block has succeeded."""
        started = time.monotonic()
        if self._out.isatty():
            self._out.write(f"  {label} ...")
            self._out.flush()
        try:
            yield
        except BaseException:
            if self._out.isatty():
                self.say()
            raise
        start = "\r" if self._out.isatty() else ""
        self.say(f"{start}  {label:<32}{time.monotonic() - started:5.1f} s")


def greet(progress: Progress, access: Access, password_file: Path, call: dict[str, Any] | None) -> None:
    """Say where everything is and how to go on."""
    urls = access.ready_document()
    progress.say(
        f"\n{progress.bold(f'mcpsite is ready after {progress.seconds:.1f} s.')} Ctrl-C stops it; the data stay.\n"
    )
    progress.say(f"  Admin          {progress.bold(urls['admin_url'])}")
    if access.new_password is not None:
        progress.say(f"                 user {access.user}, password {progress.bold(access.new_password)}")
        progress.say(f"                 (shown only this once; it is kept in {password_file})")
    elif password_file.exists():
        progress.say(f"                 user {access.user}; its first password is kept in {password_file}")
    else:
        progress.say(f"                 user {access.user}")
    progress.say(f"  MCP endpoint   {progress.bold(urls['mcp_url'])}")
    if access.shown_token is None:
        progress.say(
            f"  Token          make one at {urls['admin_url']}access/apitoken/add/; then any MCP client can connect:"
        )
    else:
        progress.say(f"  Token          {access.shown_token}")
    progress.say("\n  Configuration of an MCP client:\n")
    progress.say(_indented(mcp_servers(urls["mcp_url"], access.shown_token or PLACEHOLDER)))
    if call is not None:
        _tell_first_call(progress, access, call)
    progress.say()


def _indented(value: object) -> str:
    return "\n".join(f"    {line}" for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines())


def _tell_first_call(progress: Progress, access: Access, call: dict[str, Any]) -> None:
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    answer = call["answer"] if isinstance(call["answer"], str) else json.dumps(call["answer"], ensure_ascii=False)
    record = f"{access.public_url}/admin/audit/record/?q={quote(str(call['record_id']))}"
    progress.say("\n  The first call, by the official MCP client through the endpoint above:\n")
    progress.say(f"    call         {call['tool']} {arguments}")
    progress.say(f"    answer       {answer}")
    progress.say(f"    record       {progress.bold(str(call['record_id']))}  {record}")


def greet_services(progress: Progress, data_dir: Path, is_default: bool) -> None:
    """Say that only the engines run, and how to use them."""
    variable = "" if is_default else f"MCPSITE_DATA={data_dir} "
    title = progress.bold(f"The engines are ready after {progress.seconds:.1f} s.")
    progress.say(f"\n{title} Ctrl-C stops them; the data stay.\n")
    progress.say("  Commands in another terminal find them by themselves:")
    progress.say(f"    {variable}.venv/bin/python manage.py migrate\n")
