"""The tamper drill, in short: each sort of change once, and some at random. `make tamper` does a thousand."""

from __future__ import annotations

import os

import pytest
from django.conf import settings
from django.db import connections
from psycopg.conninfo import make_conninfo

from bench.tamper import MUTATIONS, Drill, drill
from mcpsite.datadir import SUPERUSER


@pytest.fixture
def ledger(django_db_setup):
    if not settings.EMBEDDED_DATABASE:
        pytest.skip("only the embedded PostgreSQL has a superuser to play")
    name = connections["owner"].settings_dict["NAME"]
    url = make_conninfo(settings.DATA_DIR.database_url(SUPERUSER), dbname=name)
    made = Drill(url, seed=int.from_bytes(os.urandom(4)))
    yield made
    made.close()


def test_whatever_a_superuser_changes_is_found_and_named(ledger):
    outcomes = list(drill(ledger, 60))
    assert [text for each in outcomes for text in each.missed] == [], f"seed {ledger.seed}"
    assert sum(each.done for each in outcomes[1:]) == 60
    assert {each.name for each in outcomes[1:] if each.done} == {each.__name__.replace("_", " ") for each in MUTATIONS}
