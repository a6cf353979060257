"""Whether this process lives, can serve, and reaches its engines: asked often, by anybody, and always answered in time.

PostgreSQL is asked over a connection of our own, never one of the pool, whose callers may be what it waits for. A
question that gets no answer in time goes on in the background, and is not asked a second time until it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import pkgutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from django.apps import apps
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, JsonResponse
from health_check.checks import Database  # type: ignore[import-untyped]
from health_check.contrib.redis import Redis  # type: ignore[import-untyped]
from health_check.exceptions import ServiceUnavailable  # type: ignore[import-untyped]
from health_check.views import HealthCheckView  # type: ignore[import-untyped]
from redis.asyncio import Redis as RedisClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from audit.durability import SWITCHED_OFF, complaint
from audit.outside.ages import UNEXPLAINED
from audit.sealing.progress import PROGRESS, Progress
from mcpsite.postgres import conninfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 0.06
_SLICES = 12
_GIVE_UP_SECONDS = 5
# A busy machine is late now and then: a load balancer that took it for a lost database would make it busier.
_GRACE_SECONDS = 2.0
_ALARMED = "SELECT EXISTS (SELECT 1 FROM audit_streamstate WHERE alarm <> '')"
_LONGEST_LAG_SECONDS = 10.0
_APPLIED = "SELECT app, name FROM django_migrations"
_CONTRADICTED = f"SELECT 1 {UNEXPLAINED} LIMIT 1"


class Probe:
    """One small connection to PostgreSQL, kept open by the event loop that asks."""

    def __init__(self) -> None:
        self._connection: psycopg.AsyncConnection[Any] | None = None
        # Whether a witness or an anchor held a head against the ledger when PostgreSQL last answered.
        self.contradicted = False
        self._question: asyncio.Task[None] | None = None
        self._answered_at = -_GRACE_SECONDS
        self._migrated = False
        # Whether a stream of the ledger had an alarm when PostgreSQL last answered.
        self.stream_alarm = False
        self.seal_lag_seconds = 0.0

    async def answers(self, within: float = ANSWER_SECONDS) -> bool:
        """Whether PostgreSQL answers a query within so many seconds, or is late and answered a moment ago."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
        for _slice in range(_SLICES):  # counted, so that a busy process does not take its own delay for PostgreSQL's
            done, _ = await asyncio.wait({self._question}, timeout=within / _SLICES)
            if done:
                return not self._question.cancelled() and self._question.exception() is None
        return time.monotonic() - self._answered_at < _GRACE_SECONDS

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                connection = await self._connected()
                await connection.execute("SELECT 1")
                self._answered_at = time.monotonic()
                await self._look_at_streams(connection)
                await self._look_at_seals(connection)
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.warning("PostgreSQL does not answer the health check: %s", str(error).partition("\n")[0])
            await self._drop()
            raise

    async def _look_at_streams(self, connection: psycopg.AsyncConnection[Any]) -> None:
        with contextlib.suppress(psycopg.errors.UndefinedTable):  # before the first migration
            self.contradicted = await (await connection.execute(_CONTRADICTED)).fetchone() is not None
            row = await (await connection.execute(_ALARMED)).fetchone()
            self.stream_alarm = bool(row and row[0])

    async def _look_at_seals(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Never a reason to call PostgreSQL away: before migrations, or while they hold locks, nothing is known."""
        try:
            row = await (await connection.execute(PROGRESS)).fetchone()
        except psycopg.errors.Error as error:
            if connection.broken:
                raise
            logger.debug("how far sealing has come is not known: %s", error)
            return
        self.seal_lag_seconds = Progress.of(row).lag_seconds if row else 0.0

    async def migrated(self) -> bool:
        """Whether nothing is left to migrate; asked only while PostgreSQL answers. Once true, it stays so."""
        if not self._migrated:
            wanted = await asyncio.to_thread(_known_migrations)
            rows = await (await (await self._connected()).execute(_APPLIED)).fetchall()
            self._migrated = wanted <= {(app, name) for app, name in rows}
        return self._migrated

    async def forgetful(self) -> str:
        """Why this server is not to be trusted with a ledger; empty when there is nothing to say."""
        rows = await (await (await self._connected()).execute(SWITCHED_OFF)).fetchall()
        return complaint(name for (name,) in rows)

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                conninfo(settings.DATABASES["default"]),
                autocommit=True,
                application_name="mcpsite health",
                options="-c lock_timeout=20",
            )
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def close(self) -> None:
        """Let go of the connection; the next question opens another one."""
        if self._question is not None and not self._question.done():
            self._question.cancel()
            await asyncio.wait({self._question})
        await self._drop()


@functools.cache
def _known_migrations() -> frozenset[tuple[str, str]]:
    """By the names of their files: Django's loader would import them all, for as long as the process lives."""
    return frozenset(
        (app.label, module.name)
        for app in apps.get_app_configs()
        for module in pkgutil.iter_modules([f"{app.path}/migrations"])
    )


@functools.cache
def _probes() -> WeakKeyDictionary[asyncio.AbstractEventLoop, Probe]:
    return WeakKeyDictionary()


def probe() -> Probe:
    """The probe of the running event loop."""
    return _probes().setdefault(asyncio.get_running_loop(), Probe())


if TYPE_CHECKING:

    class _Database:
        timeout: timedelta

    class _Redis:
        timeout: timedelta

        async def run(self) -> None: ...

    class _View:
        checks: Any

        def get_checks(self) -> Any: ...

        @classmethod
        def as_view(cls, **initial: Any) -> Callable[[HttpRequest], Awaitable[HttpResponse]]: ...
else:
    _Database, _Redis, _View = Database, Redis, HealthCheckView


@dataclass
class PostgresCheck(_Database):
    """django-health-check's Database, over the probe's connection."""

    timeout = timedelta(seconds=0)

    async def run(self) -> None:
        """Raise ServiceUnavailable unless PostgreSQL answers in time."""
        if not await probe().answers():
            raise ServiceUnavailable("PostgreSQL does not answer")


def _redis() -> RedisClient:
    return RedisClient.from_url(
        settings.REDIS_URL,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


@dataclass
class RedisCheck(_Redis):
    """django-health-check's Redis, which does not wait."""

    client_factory: Any = _redis
    timeout = timedelta(seconds=0)

    async def run(self) -> None:
        """Raise ServiceUnavailable unless Redis answers in time."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await super().run()
        except (RedisError, OSError, TimeoutError) as error:
            raise ServiceUnavailable("Redis does not answer") from error


class Health(_View):
    """`GET /health`: 503 only without PostgreSQL, since everything else goes on without Redis."""

    checks = (PostgresCheck, RedisCheck)
    http_method_names = ["get", "head", "options"]

    async def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The state of both engines, and whether the ledger is sealed in time."""
        found = await asyncio.gather(*(check.get_result() for check in self.get_checks()))
        postgresql, redis = (result.error is None for result in found)
        fine = redis and not probe().stream_alarm and probe().seal_lag_seconds <= _LONGEST_LAG_SECONDS
        status = "unhealthy" if not postgresql else "healthy" if fine else "degraded"
        body = {
            "status": status,
            "service": "mcpsite",
            "postgresql": "connected" if postgresql else "disconnected",
            "redis": "connected" if redis else "disconnected",
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        if postgresql and probe().contradicted:
            body |= {"status": "degraded", "ledger": "contradicted"}
        return JsonResponse(body, status=200 if postgresql else 503)


async def livez(request: HttpRequest) -> HttpResponse:
    """200 as long as the process serves."""
    return _uncached(JsonResponse({"alive": True}))


async def readyz(request: HttpRequest) -> HttpResponse:
    """200 when a call would be served now; 503 with the reasons otherwise."""
    reasons = []
    gateway = request.scope.get("mcpsite.gateway") if isinstance(request, ASGIRequest) else None
    if gateway is None or not gateway.ready():
        reasons.append("The gateway is not ready.")
    if not await probe().answers():
        reasons.append("PostgreSQL does not answer.")
    elif not await _migrated():
        reasons.append("There are migrations to apply.")
    elif forgetful := await _asked(probe().forgetful(), "whether it keeps what it commits"):
        reasons.append(forgetful)
    return _uncached(JsonResponse({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200))


async def _migrated() -> bool:
    return bool(await _asked(probe().migrated(), "the migrations"))


async def _asked(question: Awaitable[T], what: str) -> T | None:
    """The answer of PostgreSQL; None, and a line in the log, when it gives none."""
    try:
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            return await question
    except (psycopg.Error, OSError, TimeoutError) as error:
        logger.warning("PostgreSQL does not say %s: %s", what, error)
        return None


def _uncached(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "no-store"
    return response


async def _in_this_loop(request: HttpRequest, view: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> HttpResponse:
    """Under WSGI an event loop lives for one request, and so does the connection."""
    try:
        return await view(request)
    finally:
        if not isinstance(request, ASGIRequest):
            await probe().close()


health = functools.partial(_in_this_loop, view=Health.as_view())
ready = functools.partial(_in_this_loop, view=readyz)
PROBES: dict[str, Callable[[HttpRequest], Awaitable[HttpResponse]]] = {
    "/health": health,
    "/livez": livez,
    "/readyz": ready,
}
