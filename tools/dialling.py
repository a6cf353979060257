"""Connections for what lies below and may not look up here: made through the same gate as those of connectors."""

from __future__ import annotations

import asyncio
import socket

from tools.sync import egress_now


def dial(host: str, port: int, seconds: float) -> socket.socket:
    """A TCP connection to a checked address of `host`, under the rules of this moment. Raises OSError.

    Blocks; not for event loops. Of several addresses the first that answers is taken.
    """
    addresses = asyncio.run(asyncio.wait_for(egress_now().resolve(host, port), seconds))
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), seconds / len(addresses))
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), seconds)
