"""The compiled policy: complete, versioned, and indexed so that a decision does not grow with what there is."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from access import policy, tokens
from access.models import ApiToken, Grant, PolicyVersion, Role, User
from access.snapshot import Snapshot, load
from access.tokens import InvalidToken
from tools.definitions import publish
from tools.models import DataSource, Tool, Toolset, ToolVersion

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def make_tool(source: DataSource, name: str, **fields: object) -> Tool:
    tool = Tool.objects.create(source=source, name=name, spec={"name": name}, **fields)
    publish(tool, {"name": name, "inputSchema": SCHEMA})
    return tool


@pytest.fixture
def source(committed_db: None) -> DataSource:
    return DataSource.objects.create(name="office", kind="mcp", options={"url": "https://mcp.example.com/mcp"})


@pytest.fixture
def user(committed_db: None) -> User:
    user = User.objects.create(username="carla")
    user.groups.add(Role.objects.create(name="clerk"))
    return user


def role() -> Role:
    return Role.objects.get(name="clerk")


def names(snapshot: Snapshot, raw: str, toolset: str | None = None) -> list[str]:
    return [tool.name for tool in policy.visible(snapshot, policy.principal_of(snapshot, raw), toolset)]


def test_grants_by_tool_toolset_and_tag_add_up_and_the_largest_budget_counts(source: DataSource, user: User) -> None:
    one, two, three = make_tool(source, "one"), make_tool(source, "two"), make_tool(source, "three", tags=["desk"])
    make_tool(source, "four")
    toolset = Toolset.objects.create(name="set")
    toolset.tools.add(one, two)
    Grant.objects.create(role=role(), tool=one, calls_per_minute=5)
    Grant.objects.create(role=role(), toolset=toolset, calls_per_minute=50)
    Grant.objects.create(role=role(), tag="desk")
    _, raw = tokens.issue(user, name="t", scopes=["tools"])
    snapshot = load()
    assert names(snapshot, raw) == ["one", "three", "two"]
    found = policy.find(snapshot, policy.principal_of(snapshot, raw), "one", None)
    assert found is not None
    assert found[1] == 50
    assert three.name in names(snapshot, raw)


def test_a_token_is_never_wider_than_its_scopes_and_its_toolset(source: DataSource, user: User) -> None:
    one, two = make_tool(source, "one"), make_tool(source, "two")
    toolset = Toolset.objects.create(name="set")
    toolset.tools.add(one)
    for tool in (one, two):
        Grant.objects.create(role=role(), tool=tool)
    _, narrow = tokens.issue(user, name="n", scopes=["tools"], toolset=toolset)
    _, reader = tokens.issue(user, name="r", scopes=["read"])
    snapshot = load()
    assert names(snapshot, narrow) == ["one"]
    assert names(snapshot, reader) == []


def test_being_superuser_is_no_grant(source: DataSource, committed_db: None) -> None:
    make_tool(source, "one")
    chief = User.objects.create(username="chief", is_superuser=True, is_staff=True)
    _, raw = tokens.issue(chief, name="t", scopes=["tools"])
    assert names(load(), raw) == []


def test_a_token_that_expires_later_expires_without_a_new_snapshot(source: DataSource, user: User) -> None:
    token, raw = tokens.issue(user, name="t", scopes=["tools"], expires_at=timezone.now() + timedelta(hours=1))
    snapshot = load()
    policy.principal_of(snapshot, raw)
    principal = snapshot.tokens[token.digest]
    object.__setattr__(principal, "expires", time.time() - 1)
    with pytest.raises(InvalidToken):
        policy.principal_of(snapshot, raw)


def test_jwts_are_checked_against_the_policy(source: DataSource, user: User) -> None:
    pair = tokens.obtain(user)
    assert policy.principal_of(load(), pair["access"]).username == "carla"
    tokens.end_all_sessions(user)
    with pytest.raises(InvalidToken):
        policy.principal_of(load(), pair["access"])
    pair = tokens.obtain(user)
    tokens.revoke_session(pair["refresh"])
    with pytest.raises(InvalidToken):
        policy.principal_of(load(), pair["access"])


def test_one_broken_tool_or_source_does_not_take_the_others_with_it(source: DataSource, user: User) -> None:
    good, bad = make_tool(source, "good"), make_tool(source, "bad")
    ToolVersion.objects.filter(tool=bad).update(definition='{"name":"bad","inputSchema":{"type":"nonsense"}}')
    other = DataSource.objects.create(name="broken", kind="mcp", options={"url": "not a url"})
    make_tool(other, "lost")
    snapshot = load()
    assert list(snapshot.tools) == [good.name]
    assert other.pk not in snapshot.sources


def test_what_did_not_change_is_taken_over(source: DataSource, user: User) -> None:
    make_tool(source, "one")
    first = load()
    make_tool(source, "two")
    second = load(first)
    assert second.tools["one"] is first.tools["one"]
    assert second.sources[source.pk] is first.sources[source.pk]
    Tool.objects.filter(name="one").update(effect="destructive")
    assert load(second).tools["one"].effect == "destructive"


def test_a_transaction_raises_the_version_once_and_a_rolled_back_one_not_at_all(committed_db: None) -> None:
    before = PolicyVersion.objects.get().version
    with transaction.atomic():
        for number in range(5):
            User.objects.create(username=f"user {number}")
    assert PolicyVersion.objects.get().version == before + 1
    try:
        with transaction.atomic():
            User.objects.create(username="never")
            raise RuntimeError
    except RuntimeError:
        pass
    assert PolicyVersion.objects.get().version == before + 1


def test_what_decides_nothing_does_not_raise_the_version(user: User) -> None:
    token, _ = tokens.issue(user, name="t", scopes=["tools"])
    before = PolicyVersion.objects.get().version
    User.objects.update(last_login=timezone.now())
    DataSource.objects.update(checked_at=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO access_tokenuse VALUES (%s, now(), '')", [token.pk])
    assert PolicyVersion.objects.get().version == before


def test_a_decision_costs_the_same_with_many_tokens_and_grants(source: DataSource, user: User) -> None:
    make_tool(source, "one")
    Grant.objects.create(role=role(), tag="nothing")
    Grant.objects.create(role=role(), tool=Tool.objects.get())
    _, raw = tokens.issue(user, name="t", scopes=["tools"])
    small = load()
    with transaction.atomic():
        crowd = User.objects.bulk_create(User(username=f"user {n}") for n in range(2000))
        ApiToken.objects.bulk_create(
            ApiToken(user=each, name="t", prefix=f"mcps_{n:07}", digest=f"{n:064}") for n, each in enumerate(crowd)
        )
    large = load()
    assert len(large.tokens) == 2001

    def cost(snapshot: Snapshot) -> float:
        best = 1e9
        for _ in range(100):
            started = time.perf_counter()
            for _ in range(200):
                policy.find(snapshot, policy.principal_of(snapshot, raw), "one", None)
            best = min(best, time.perf_counter() - started)
        return best

    assert cost(large) < cost(small) * 1.5
