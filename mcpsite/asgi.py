"""The ASGI application: `/mcp` goes to the gateway, everything else to Django."""

from __future__ import annotations

import asyncio
import gc
import logging
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application

django = get_asgi_application()

from gateway.app import Gateway  # noqa: E402 - needs Django's settings
from gateway.http import ASGIScope, Receive, Send  # noqa: E402
from mcpsite.postgres import conninfo  # noqa: E402

logger = logging.getLogger("mcpsite")

_READY_SECONDS = 5
# Objects that pages may leave in cycles, and how often the young ones are looked at before all are.
_LEFT_BEHIND, _YOUNG_ONES = 2_000, 20


class Site:
    """Dispatches before Django's own handler, which alone would cost more than a whole call."""

    def __init__(self) -> None:
        self.gateway = Gateway(conninfo(settings.DATABASES["default"]), conninfo(settings.LEDGER_DATABASES["writer"]))

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "http":
            if self.gateway.serves(scope["path"]):
                await self.gateway(scope, receive, send)
            else:
                scope["mcpsite.gateway"] = self.gateway
                counted = self.gateway.meter.page(scope["path"], send)
                await django(scope, receive, counted)  # type: ignore[arg-type]
                tidy()
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        if settings.ONE_DATABASE_ROLE:
            logger.warning(
                "One database role for everything: the site could alter the schema and its triggers are all that keeps "
                "the ledger. Set DATABASE_OWNER_URL, and give DATABASE_URL a role that owns nothing."
            )
        while (await receive())["type"] != "lifespan.shutdown":
            await self.gateway.start()
            await self._until_ready()
            await send({"type": "lifespan.startup.complete"})
        await self.gateway.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _until_ready(self) -> None:
        """Take no connection that could only be refused; but serve health and pages when the services stay away."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not self.gateway.ready():  # noqa: ASYNC110 - once in a process's life
                    await asyncio.sleep(0.01)
        except TimeoutError:
            logger.warning("serving without calls: the policy or the ledger is not there yet")


def tidy() -> None:
    """Collect what a page left behind, before the next one needs memory of its own: calls leave nothing of that kind,
    and the thresholds of the process are for them. A young generation takes less than a millisecond.
    """
    young, _, old = gc.get_count()
    if old >= _YOUNG_ONES:
        gc.collect()
    elif young >= _LEFT_BEHIND:
        gc.collect(1)


application = Site()
