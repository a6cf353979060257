"""Slows down whoever guesses passwords: failed logins are counted by account and network, by account, and by network.

Counted in Redis for all processes together; without Redis in this process alone, so that it is limited still.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock

from django.core.cache import cache
from django_redis.exceptions import ConnectionInterrupted  # type: ignore[import-untyped]
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 900
# A network is an IPv4 /24 or an IPv6 /64. One account can be tried from one network ten times, and so on.
LIMITS = {"pair": 10, "account": 100, "network": 60}
_MOST_LOCAL = 10_000
_AWAY = (ConnectionInterrupted, RedisError)


class TooManyAttempts(Exception):
    """Refused before the password was looked at. `first` is set at the moment that the limit is reached."""

    code = "too_many_attempts"

    def __init__(self, first: bool) -> None:
        super().__init__("Too many attempts. Wait a quarter of an hour, or ask an administrator.")
        self.first = first


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one account from one address."""

    account: str
    address: str | None

    def keys(self) -> dict[str, str]:
        """Limit → the key under which it is counted; names are hashed, since people type passwords into user fields."""
        account = sha256(self.account.strip().lower().encode("utf-8", "replace")).hexdigest()[:32]
        network = network_of(self.address)
        return {
            "pair": f"login:{account}:{network}",
            "account": f"login:{account}",
            "network": f"login:{network}",
        }


def network_of(address: str | None) -> str:
    """The network that an address counts as."""
    if not address:
        return "unknown"
    size = 64 if ":" in address else 24
    return str(ipaddress.ip_network(f"{address}/{size}", strict=False))


def begin(attempt: Attempt) -> None:
    """Count the attempt before it is made, so that many at once are no way round. Raises TooManyAttempts."""
    counts = {limit: _add(key) for limit, key in attempt.keys().items()}
    over = [limit for limit, count in counts.items() if count > LIMITS[limit]]
    if over:
        raise TooManyAttempts(first=any(counts[limit] == LIMITS[limit] + 1 for limit in over))


def succeeded(attempt: Attempt) -> None:
    """Forget the attempts at this account from this network, and this one everywhere."""
    keys = attempt.keys()
    _forget(keys["pair"])
    for limit in ("account", "network"):
        _add(keys[limit], -1)


class _Local:
    """Counts of this process, for the time that Redis is away."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lock = Lock()

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            until, count = self._counts.pop(key, (0.0, 0))
            now = time.monotonic()
            if until < now:
                until, count = now + WINDOW_SECONDS, 0
            self._counts[key] = (until, max(0, count + amount))
            while len(self._counts) > _MOST_LOCAL:
                self._counts.popitem(last=False)
            return self._counts[key][1]

    def count(self, key: str) -> int:
        with self._lock:
            until, count = self._counts.get(key, (0.0, 0))
            return count if until >= time.monotonic() else 0

    def forget(self, key: str) -> None:
        with self._lock:
            self._counts.pop(key, None)


@functools.cache
def _local() -> _Local:
    return _Local()


def _add(key: str, amount: int = 1) -> int:
    """How many there are now. What Redis did not hear stays counted here when it is back."""
    here = _local().add(key, amount)
    try:
        cache.add(key, 0, WINDOW_SECONDS)
        return int(cache.incr(key, amount)) + _local().count(_unheard(key))
    except (*_AWAY, ValueError) as error:
        logger.warning("failed logins are counted in this process only: %s", error)
        _local().add(_unheard(key), amount)
        return here


def _unheard(key: str) -> str:
    return f"{key}:unheard"


def _forget(key: str) -> None:
    _local().forget(key)
    _local().forget(_unheard(key))
    try:
        cache.delete(key)
    except _AWAY as error:
        logger.warning("failed logins are counted in this process only: %s", error)
