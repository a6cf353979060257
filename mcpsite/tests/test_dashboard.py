"""The first page of the admin shows real records, and only what its viewer may see."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.test import Client, RequestFactory
from django.utils import timezone

from access.models import Grant, Role, User
from audit import summary
from audit.entry import Entry
from audit.ledger import record
from mcpsite import dashboard
from mcpsite.dashboard import axis, duration, records, share
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db
HOME = "/admin/"


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


def make_staff(*permissions: str) -> Client:
    user = User.objects.create_user("dora", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make_root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def forget(client: Client) -> None:
    """As after a while: what was counted is not kept any more. The session is."""
    cache.clear()
    client.force_login(User.objects.get(username="root"))


def make_record(**values) -> None:
    call = {"kind": "call", "code": "ok", "decision": "allow", "tool": "find", "connector": "desk", "total_us": 12_000}
    record(Entry(**{**call, **values}))


def text_of(client: Client, **query: str) -> str:
    answer = client.get(HOME, query)
    assert answer.status_code == 200
    return " ".join(answer.content.decode().split())


def test_calls_refusals_and_changes_are_shown():
    make_record()
    make_record(kind="denied", code="not_granted", decision="deny", tool="pay", actor="emil")
    client = make_root()
    client.post("/admin/tools/egressrule/add/", {"network": "10.0.0.0/8", "note": "databases"})
    page = text_of(client)
    for said in ("find", "pay", "emil", "not_granted", "10.0.0.0/8", "Created by root", "Calls per hour"):
        assert said in page


def test_every_figure_leads_to_the_records():
    make_record()
    client = make_root()
    context = client.get(HOME).context
    urls = [figure.url for figure in context["figures"]] + [column.url for column in context["chart"].columns[-2:]]
    urls += [each["url"] for each in context["tools"]] + [context["refusals_url"], context["changes_url"]]
    for url in urls:
        assert client.get(url).status_code == 200, url


def counted(client: Client) -> list[int]:
    """Calls, failed and refused ones, as the page says; as many records are where each leads."""
    forget(client)
    context = client.get(HOME).context
    said = [int(figure.value.replace(",", "")) for figure in context["figures"][:3]]
    assert said == [client.get(figure.url).context["cl"].queryset.count() for figure in context["figures"][:3]]
    last = context["chart"].columns[-1]
    assert client.get(last.url).context["cl"].queryset.count() == last.bar.parts.total
    return said


def test_a_figure_leads_to_as_many_records_as_it_says():
    client = make_root()
    before = counted(client)
    for values in (
        {},
        {"kind": "outcome"},
        {"kind": "intent", "code": "intended"},
        {"kind": "outcome", "code": "upstream_timeout"},
        {"kind": "denied", "code": "not_granted", "decision": "deny"},
        {"kind": "invalid", "code": "invalid_arguments", "decision": "deny"},
        {"kind": "auth", "code": "invalid_credentials", "decision": "deny"},
    ):
        make_record(**values)
    assert [now - then for now, then in zip(counted(client), before, strict=True)] == [5, 1, 2]


def test_what_cannot_be_counted_in_time_is_said_and_the_rest_is_shown(monkeypatch):
    make_record(kind="denied", code="not_granted", decision="deny", tool="pay")
    DataSource.objects.create(name="office", kind="mcp")
    monkeypatch.setattr(summary, "_BY_TIME", "SELECT pg_sleep(20)")
    monkeypatch.setattr(summary, "_PATIENCE_MS", 50)
    client = make_root()
    page = text_of(client)
    for said in ("more records in this period than can be counted", "pay", "office", "7 days"):
        assert said in page
    monkeypatch.undo()
    assert "than can be counted" in text_of(client)  # and is not tried again at once
    cache.clear()


def test_a_failing_data_source_comes_first_with_the_reason():
    DataSource.objects.create(name="a-good-one", kind="sql", check_ok=True)
    DataSource.objects.create(name="z-bad-one", kind="sql", check_ok=False, check_message="The login was refused.")
    DataSource.objects.create(name="b-off", kind="sql", enabled=False, check_ok=False, check_message="Gone long ago.")
    client = make_root()
    context = client.get(HOME).context
    assert [each["row"].name for each in context["sources"]] == ["z-bad-one", "a-good-one", "b-off"]
    page = text_of(client)
    assert "The login was refused." in page
    assert "Gone long ago." not in page


def test_without_permission_no_record_is_shown():
    make_record(tool="secret_tool")
    make_record(kind="denied", code="not_granted", decision="deny", tool="secret_tool")
    DataSource.objects.create(name="office", kind="mcp")
    client = make_staff("view_datasource")
    page = text_of(client)
    assert "office" in page
    assert "secret_tool" not in page
    assert "Calls per hour" not in page


def test_without_permission_no_data_source_is_shown():
    make_record(tool="find")
    DataSource.objects.create(name="office", kind="mcp")
    page = text_of(make_staff("view_record"), days="1")
    assert "find" in page
    assert "office" not in page


def test_who_may_see_neither_finds_the_way_to_what_is_left():
    page = text_of(make_staff("view_role"))
    assert "/admin/access/role/" in page
    assert "/admin/access/user/" not in page


def test_who_may_see_nothing_is_told_whom_to_ask():
    assert "Ask an administrator for a role" in text_of(make_staff())


def test_a_new_installation_shows_what_to_do_next(monkeypatch):
    now = timezone.now()
    nothing = summary.Summary(now, [summary.Bar(now, now, summary.Parts())], [], None, None)
    monkeypatch.setattr(dashboard, "calls", lambda span, step: nothing)  # whatever other tests have left behind
    monkeypatch.setattr(dashboard, "anything_called", lambda: False)
    DataSource.objects.create(name="office", kind="mcp")
    answer = make_root().get(HOME)
    steps = answer.context["steps"]
    assert "Calls per hour" not in answer.content.decode()
    quiet = [step.title for step in steps if not step.done]
    assert [step.title for step in steps if step.done] == ["Add a data source"]
    assert quiet[-3:] == ["Make a role with a grant", "Give the role to somebody", "Make a token"]
    tool = Tool.objects.create(source=DataSource.objects.get(), name="find")
    Grant.objects.create(role=Role.objects.create(name="r"), tool=tool)
    cache.clear()
    done = [step.title for step in dashboard.steps_for(_request()) if step.done]
    assert done == ["Add a data source", "Get its tools", "Make a role with a grant"]


def _request():
    request = RequestFactory().get(HOME)
    request.user = User.objects.get(username="root")
    return request


def test_the_steps_go_when_something_was_called():
    make_record()
    assert make_root().get(HOME).context["steps"] == []


def test_a_period_that_does_not_exist_is_the_day():
    client = make_root()
    assert client.get(HOME, {"days": "<script>"}).context["days"] == 1
    assert len(client.get(HOME, {"days": "7"}).context["chart"].columns) == 29


def test_a_cold_page_asks_few_questions(django_assert_max_num_queries):
    for name in ("one", "two", "three"):
        make_record(tool=name)
        DataSource.objects.create(name=name, kind="mcp")
    client = make_root()
    forget(client)
    with django_assert_max_num_queries(16):
        client.get(HOME)


@pytest.mark.parametrize(
    ("most", "marks"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (10, [0, 2, 4, 6, 8, 10]),
        (11, [0, 5, 10, 15]),
        (26, [0, 10, 20, 30]),
        (999, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_the_axis_ends_at_a_round_number(most, marks):
    assert axis(most) == marks


def test_the_parts_of_a_bar_fill_no_more_than_the_axis():
    make_record()
    make_record(kind="denied", code="not_granted", decision="deny")
    last = make_root().get(HOME).context["chart"].columns[-1]
    assert sum(height for _, height in last.heights) <= 100
    assert last.said.endswith("1 carried out, 0 failed, 1 refused")


def test_little_is_not_rounded_to_nothing():
    assert [share(*pair) for pair in ((0, 0), (0, 9), (1, 100_000), (1, 8), (99_999, 100_000), (5, 5))] == [
        "-",
        "0 %",
        "< 0.1 %",
        "12.5 %",
        "> 99.9 %",
        "100 %",
    ]


def test_durations_are_short():
    assert [duration(each) for each in (None, 800, 12_400, 1_440_000)] == ["-", "0.8 ms", "12 ms", "1.4 s"]


def test_a_link_to_records_escapes_its_filters():
    assert records(tool="a&b=c").endswith("?tool=a%26b%3Dc")


def test_calls_of_which_nobody_knows_what_became_of_them_are_an_alarm():
    client = make_root()
    assert "nobody knows" not in text_of(client)
    make_record(kind="outcome", code="unknown")
    assert "Of 1 call with effects in the last 7 days nobody knows what became of it" in text_of(client)
    assert "code=unknown" in text_of(client)
