"""Failed logins are counted by account and by network, and without Redis in the process."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisAway

from access.attempts import LIMITS, Attempt, TooManyAttempts, begin, network_of, succeeded


def tries(number: int, **values) -> int:
    """How many of `number` attempts were let through."""
    passed = 0
    for turn in range(number):
        try:
            begin(Attempt(**{key: value(turn) if callable(value) else value for key, value in values.items()}))
            passed += 1
        except TooManyAttempts:
            continue
    return passed


def test_one_account_from_one_network_has_few_tries():
    assert tries(30, account="dora", address=lambda turn: f"203.0.113.{turn}") == LIMITS["pair"]


def test_one_network_has_few_tries_over_all_accounts():
    assert tries(90, account=lambda turn: f"user{turn}", address="203.0.113.7") == LIMITS["network"]


def test_one_account_has_few_tries_over_all_networks():
    assert tries(130, account="dora", address=lambda turn: f"10.{turn}.0.1") == LIMITS["account"]


def test_spelling_makes_no_other_account():
    assert tries(30, account=lambda turn: ("Dora", " dora ", "DORA")[turn % 3], address="203.0.113.7") == LIMITS["pair"]


def test_a_success_forgets_the_failures_of_its_account():
    attempt = Attempt("dora", "203.0.113.7")
    for _ in range(40):
        begin(attempt)
        succeeded(attempt)
    assert tries(30, account="dora", address="203.0.113.7") == LIMITS["pair"]


def test_without_redis_it_is_limited_still(monkeypatch):
    def away(*args, **kwargs):
        raise RedisAway

    monkeypatch.setattr("access.attempts.cache", type("Away", (), {"add": away, "incr": away, "delete": away}))
    assert tries(30, account="dora", address="203.0.113.7") == LIMITS["pair"]


def test_what_redis_did_not_hear_is_counted_when_it_is_back(monkeypatch):
    attempt = Attempt("dora", "203.0.113.7")
    with monkeypatch.context() as late:
        late.setattr("access.attempts.cache.incr", lambda *args: (_ for _ in ()).throw(RedisAway))
        begin(attempt)
    assert tries(30, account="dora", address="203.0.113.7") == LIMITS["pair"] - 1


@pytest.mark.parametrize(
    ("address", "network"),
    [("203.0.113.7", "203.0.113.0/24"), ("2001:db8::1", "2001:db8::/64"), (None, "unknown")],
)
def test_a_network_is_what_one_attacker_usually_has(address, network):
    assert network_of(address) == network
