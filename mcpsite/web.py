"""One web worker. Whoever starts it binds the socket, so that waiting connections survive a worker's death."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import gc
import os
import resource
import socket
import sys
import threading
import time
import types
import warnings
from typing import Any, cast

BACKLOG = 2048
GRACEFUL_SECONDS = 20
# A call makes some hundred objects, of which none is part of a cycle: look for cycles seldom. Pages make many: they are
# not to pile up.
_GC_THRESHOLDS = (20_000, 5, 5)
# glibc gives each thread a heap of its own, which pages fill in turn, and learns to keep the 16 MB in it that the hash
# of a password takes for a moment: six logins were 50 MB. `M_ARENA_MAX` and `M_MMAP_THRESHOLD` of malloc.h.
_M_ARENA_MAX, _ARENAS = -8, 2
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1024 * 1024
# What a large page took is free again soon, but scattered: C libraries keep it.
_TRIM_SECONDS = 2.0
# Of 0.1 seconds each.
_TICKS_BETWEEN_REVIEWS = 50


class CannotListen(Exception):
    """The address cannot be bound; the text is a sentence for people."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host:port`; raises CannotListen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"Port {port} on {host} is in use: stop what listens there, or choose another one with --port."
        else:
            reason = f"Cannot listen on {host}:{port}: {error.strerror or error}."
        raise CannotListen(reason) from error


def serve(listener: socket.socket) -> None:
    """Answer requests until SIGTERM; then finish those under way."""
    # WhiteNoise sends files from a synchronous iterator, which Django reads in a thread, and says so each time.
    warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")
    import uvicorn  # whoever only binds the socket does without it

    class Server(uvicorn.Server):
        """Waits for requests that end, and not for streams that do not."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """End those first."""
            from mcpsite.asgi import application

            application.gateway.wind_up()
            await super().shutdown(sockets)

        async def on_tick(self, counter: int) -> bool:
            """Also leave clients that stand still."""
            if counter % _TICKS_BETWEEN_REVIEWS == 0:
                review(self.server_state.connections, time.monotonic())
            return await super().on_tick(counter)

    from mcpsite.http import Protocol, review

    config = uvicorn.Config(
        "mcpsite.asgi:application",
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    Server(config).run(sockets=[listener])


def do_without() -> None:
    """Keep four megabytes of packages out that others import and nothing here uses: for tests, for code in pages of
    REST framework, for traces, and for a check of DNS servers.
    """
    for optional in ("requests", "jinja2", "pygments", "opentelemetry"):
        sys.modules.setdefault(optional, cast(Any, None))
    import dns.rdatatype  # noqa: F401 - the check's defaults are of it

    for name in ("dns.asyncresolver", "dns.nameserver"):
        module = types.ModuleType(name)
        vars(module)["Nameserver"] = object
        sys.modules.setdefault(name, module)


def import_site() -> None:
    """Import all that the first request would, so that it need not wait for it."""
    do_without()
    from django.urls import get_resolver

    import mcpsite.asgi  # noqa: F401 - sets Django up

    len(get_resolver().url_patterns)
    from mcpsite.api import described

    described()
    # What is loaded now lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def share_heaps() -> None:
    """Have all threads share two heaps and give large blocks back, where the C library can: a worker that serves pages
    and logins stays a third smaller.
    """
    with contextlib.suppress(AttributeError):  # It is glibc's; others have no such waste.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Give the pages that nothing is on back to the system every few seconds, where the C library can."""
    with contextlib.suppress(AttributeError):
        trim = ctypes.CDLL(None).malloc_trim

        def keep_giving() -> None:
            while True:
                time.sleep(_TRIM_SECONDS)
                trim(0)

        threading.Thread(target=keep_giving, name="malloc_trim", daemon=True).start()


def raise_file_limit() -> None:
    """Have as many open files as we may: each stream of a client is one, and 1,024 is what a process begins with."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def wait_at(gate: int) -> None:
    """Return when the other end of the pipe `gate` is closed."""
    os.read(gate, 1)
    os.close(gate)


def main() -> None:
    """Serve on an inherited listening socket, or on an address of our own."""
    parser = argparse.ArgumentParser(prog="python -m mcpsite.web", description="One web worker of the site.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="file descriptor of a listening socket")
    where.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, with --port")
    parser.add_argument("--gate", type=int, help="file descriptor of a pipe: wait until its other end is closed")
    options = parser.parse_args()
    share_heaps()
    raise_file_limit()
    import_site()
    if options.gate is not None:
        wait_at(options.gate)
    give_back()
    if options.fd is not None:
        serve(socket.socket(fileno=options.fd))
        return
    try:
        serve(listen(options.host, options.port))
    except CannotListen as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
