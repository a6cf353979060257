"""The demo, loaded for real: its data, who may read them, its tools, and that a later start changes nothing."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings
from pytest_django.plugin import DjangoDbBlocker

from access.models import ApiToken, Grant, Role, User
from access.tokens import find
from audit.models import Record
from conftest import _empty
from mcpsite.datadir import DataDir
from mcpsite.demo import database
from mcpsite.demo.catalogue import OFFICE_TOOLS, SQL_TOOLS, TIME_TOOLS
from mcpsite.demo.load import DemoAccess, load_demo
from mcpsite.demo.trade import CUSTOMERS
from mcpsite.tests.test_upstream import running_upstream
from tools.configuration import configure, stored_secrets
from tools.connectors.base import Context
from tools.connectors.registry import connector_class, source_of
from tools.models import DataSource, EgressRule, Resource, Tool, Toolset
from tools.sync import egress_now
from tools.tasks import check_one


@dataclass
class Demo:
    access: DemoAccess
    upstream: str
    data_dir: Path

    def load(self, upstream: str | None = None) -> DemoAccess:
        return load_demo(upstream or self.upstream, self.data_dir)


@pytest.fixture(scope="module")
def loaded(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    data_dir = tmp_path_factory.mktemp("demo")
    with running_upstream(data_dir) as upstream, django_db_blocker.unblock():
        yield Demo(load_demo(upstream.url, data_dir), upstream.url, data_dir)
        rows(f"DROP SCHEMA {database.SCHEMA} CASCADE")
        connections["default"].close()
        _empty()
        connections["owner"].close()


@pytest.fixture
def demo(loaded: Demo, django_db_blocker: DjangoDbBlocker) -> Iterator[Demo]:
    with django_db_blocker.unblock():
        yield loaded


def rows(statement: str) -> list[tuple[Any, ...]]:
    """What the owner sees in the demo's schema."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(f"SET search_path = {database.SCHEMA}, public")
        cursor.execute(statement)
        found = cursor.fetchall() if cursor.description else []
        cursor.execute("RESET search_path")
    return found


def value(statement: str) -> Any:
    return rows(statement)[0][0]


def reader() -> psycopg.Connection:
    row = DataSource.objects.get(name="support-desk")
    names = {"host": "host", "port": "port", "database": "dbname", "user": "user"}
    where = {names[key]: row.options[key] for key in names}
    return psycopg.connect(**where, password=row.secrets["password"], autocommit=True)


def answer(name: str, **arguments: Any) -> dict[str, Any]:
    """What a tool answers with, by its connector."""
    tool = Tool.objects.select_related("source").get(name=name)
    kind = connector_class(tool.source.kind)
    connector, spec = kind(source_of(tool.source), egress_now()), kind.ToolSpec.model_validate(tool.spec)

    async def once() -> Any:
        try:
            return await connector.call(spec, arguments, Context(uuid.uuid4(), 10.0, "tests"))
        finally:
            await connector.close()

    result = asyncio.run(once())
    assert not result.is_error
    content: dict[str, Any] = orjson.loads(orjson.dumps(result.content["structuredContent"]))
    return content


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    """The rows that a tool on the database answers with."""
    content = answer(name, **arguments)
    assert not content["truncated"]
    found: list[dict[str, Any]] = content["rows"]
    return found


# --- The data --------------------------------------------------------------------------------------------------------


def test_the_company_has_fifty_thousand_rows(demo: Demo):
    counts = {table.name: value(f"SELECT count(*) FROM {table.name}") for table in database.TABLES}
    assert counts["customers"] == CUSTOMERS == 2_800
    assert counts["products"] == 120
    assert counts["orders"] == 8_400
    assert counts["tickets"] == 4_300
    assert 14_000 < counts["order_items"] < 15_000
    assert 6_800 < counts["shipments"] < 7_500
    assert 12_000 < counts["messages"] < 13_500
    assert 49_000 < sum(counts.values()) < 51_000


def test_the_rows_are_spread_over_two_years_and_business_grows(demo: Demo):
    by_month = rows("SELECT count(*) FROM orders GROUP BY date_trunc('month', ordered_at) ORDER BY min(ordered_at)")
    months = [count for (count,) in by_month]
    assert 24 <= len(months) <= 26
    whole = months[1:-1]
    assert sum(whole[-6:]) > 1.5 * sum(whole[:6])
    assert min(whole) > 100
    busiest = value("SELECT max(n) FROM (SELECT count(*) AS n FROM orders GROUP BY customer_id) AS x")
    assert 8 <= busiest <= 60
    assert value("SELECT count(*) FROM tickets WHERE created_at > now() - interval '30 days'") > 150


def test_the_totals_of_orders_add_up(demo: Demo):
    assert (
        value("""
        SELECT count(*) FROM orders o
        WHERE items_total <> (SELECT sum(quantity * unit_price) FROM order_items i WHERE i.order_id = o.id)
           OR total <> items_total + shipping_cost
    """)
        == 0
    )


def test_parcels_are_where_their_orders_say(demo: Demo):
    allowed: dict[str, set[str | None]] = {
        "cancelled": {None},
        "pending": {None},
        "paid": {None},
        "packed": {None},
        "shipped": {"label_created", "in_transit", "out_for_delivery", "delayed", "lost"},
        "delivered": {"delivered"},
        "returned": {"delivered"},
    }
    for order, parcel in rows("""
        SELECT DISTINCT o.status, s.status FROM orders o LEFT JOIN shipments s ON s.order_id = o.id
        WHERE o.delivery = 'parcel'
    """):
        assert parcel in allowed[order], (order, parcel)
    assert value("SELECT count(*) FROM orders JOIN shipments ON order_id = orders.id WHERE delivery = 'pickup'") == 0
    assert value("SELECT count(*) FROM shipments WHERE (status = 'delivered') <> (delivered_at IS NOT NULL)") == 0


def test_things_happen_in_their_order_and_none_in_the_future(demo: Demo):
    for wrong in (
        "orders o JOIN customers c ON c.id = o.customer_id WHERE o.ordered_at < c.created_at OR o.ordered_at > now()",
        "shipments s JOIN orders o ON o.id = s.order_id WHERE s.shipped_at NOT BETWEEN o.ordered_at AND now()",
        "shipments WHERE delivered_at NOT BETWEEN shipped_at AND now()",
        "tickets t JOIN customers c ON c.id = t.customer_id WHERE t.created_at NOT BETWEEN c.created_at AND now()",
        "tickets t JOIN orders o ON o.id = t.order_id WHERE t.created_at < o.ordered_at",
        "tickets WHERE resolved_at NOT BETWEEN created_at AND now()",
        "tickets WHERE (resolved_at IS NULL) <> (status IN ('open', 'waiting'))",
        "messages m JOIN tickets t ON t.id = m.ticket_id WHERE m.sent_at NOT BETWEEN t.created_at AND now()",
        "order_items i JOIN orders o ON o.id = i.order_id JOIN products p ON p.id = i.product_id"
        " WHERE p.launched_on > o.ordered_at::date",
    ):
        assert value(f"SELECT count(*) FROM {wrong}") == 0, wrong
    assert value("SELECT now() - max(ordered_at) < interval '1 day' FROM orders")


def test_a_ticket_is_about_an_article_of_its_order(demo: Demo):
    assert (
        value("""
        SELECT count(*) FROM tickets t WHERE order_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM order_items i WHERE i.order_id = t.order_id AND i.product_id = t.product_id)
    """)
        == 0
    )
    assert value("SELECT count(*) FROM tickets WHERE id NOT IN (SELECT ticket_id FROM messages)") == 0


def test_somebody_always_waits_for_an_answer(demo: Demo):
    waiting = dict(rows("SELECT status, count(*) FROM tickets GROUP BY status"))
    assert min(waiting["open"], waiting["waiting"], waiting["resolved"]) >= 20
    assert value("SELECT count(*) FROM shipments WHERE status = 'delayed'") > 3


def test_addresses_belong_to_nobody(demo: Demo):
    domains = {domain for (domain,) in rows("SELECT DISTINCT split_part(email, '@', 2) FROM customers")}
    assert domains == {"example.com", "example.org"}
    assert value("SELECT count(*) FROM customers WHERE email !~ '^[a-z.]+[0-9]*@'") == 0


def test_nothing_is_left_to_fill_in(demo: Demo):
    assert value("SELECT count(*) FROM messages WHERE body LIKE '%{%'") == 0
    assert value("SELECT count(*) FROM tickets WHERE subject LIKE '%{%' OR subject = ''") == 0


def test_the_data_are_the_same_at_every_time_but_for_the_time():
    first, moved = datetime(2026, 3, 1, 8, tzinfo=UTC), timedelta(days=100, hours=5)
    early, late = database.make_rows(first), database.make_rows(first + moved)
    assert early == database.make_rows(first)
    at = [column for column, _, _ in database.TABLES[2].columns].index("ordered_at")
    for before, after in zip(early["orders"], late["orders"], strict=True):
        assert before[:at] == after[:at]
        assert before[at] + moved == after[at]


def test_every_table_and_column_is_explained(demo: Demo):
    unexplained = rows("""
        SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0
        WHERE c.relnamespace = 'support_desk'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
          AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)
    """)
    assert unexplained == []
    assert (
        value("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'support_desk'::regnamespace")
        == 8
    )


# --- The reading role ------------------------------------------------------------------------------------------------


def test_the_reader_can_read_and_nothing_else(demo: Demo):
    with reader() as session:
        assert session.execute("SELECT count(*) FROM customers").fetchone() == (CUSTOMERS,)
        assert session.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            session.execute("DELETE FROM messages")
        session.execute("SET default_transaction_read_only = off")
        for statement in (
            "DELETE FROM messages",
            "UPDATE customers SET name = ''",
            "CREATE TABLE support_desk.x ()",
            "CREATE TABLE public.x ()",
            "SELECT * FROM public.access_user",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement)


def test_the_reader_has_no_right_on_the_tables_of_the_site(demo: Demo):
    role = database.reader_name()
    assert (
        rows(f"""
        SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
          AND has_table_privilege('{role}', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
    """)
        == []
    )
    if settings.EMBEDDED_DATABASE:
        assert value(f"SELECT has_schema_privilege('{role}', 'public', 'USAGE')") is False
    attributes = rows(
        f"SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = '{role}'"
    )
    assert attributes == [(False, False, False, False)]


# --- The catalogue ---------------------------------------------------------------------------------------------------

SAMPLES: dict[str, dict[str, Any]] = {
    "find_customer": {"query": "Patel"},
    "get_customer": {"customer_id": 7},
    "list_customer_orders": {"customer_id": 7},
    "get_order": {"number": "so-100042"},
    "track_shipment": {"reference": "SO-100042"},
    "search_tickets": {"query": "headphones -invoice"},
    "get_ticket_thread": {"ticket_id": 42},
    "list_open_tickets": {},
    "open_tickets_by_priority": {},
    "sales_by_month": {"country": "de"},
    "top_products": {"category": "Audio"},
    "ticket_statistics": {},
    "late_shipments": {},
    "orders_to_ship": {},
}


@pytest.mark.parametrize("name", [plan.name for plan in SQL_TOOLS])
def test_every_tool_on_the_database_answers(demo: Demo, name: str):
    if name == "track_shipment":
        SAMPLES[name] = {"reference": value("SELECT tracking_number FROM shipments WHERE id = 42")}
    assert call(name, **SAMPLES[name])


def test_a_customer_is_found_by_address_and_by_name(demo: Demo):
    email, name, number = rows("SELECT email, name, id FROM customers WHERE id = 99")[0]
    assert [row["id"] for row in call("find_customer", query=email.upper())] == [number]
    assert number in [row["id"] for row in call("find_customer", query=name, max_results=100)]
    assert call("find_customer", query="100%_") == []


def test_an_order_comes_with_its_items(demo: Demo):
    order = call("get_order", number="SO-100100")[0]
    assert order["items"]
    total = sum(item["quantity"] * item["unit_price"] for item in order["items"])
    assert total == pytest.approx(order["items_total"])
    assert call("get_order", number="SO-999999") == []


def test_a_thread_is_told_from_the_beginning(demo: Demo):
    thread = call("get_ticket_thread", ticket_id=1500)[0]
    assert thread["messages"][0]["from"] == "customer"
    times = [message["sent_at"] for message in thread["messages"]]
    assert times == sorted(times)


def test_the_search_takes_filters_and_prefers_subjects(demo: Demo):
    found = call("search_tickets", query="invoice", status="closed")
    assert found
    assert {row["status"] for row in found} == {"closed"}
    assert "Invoice" in found[0]["subject"]
    assert call("search_tickets", query="xylophone") == []


def test_optional_parameters_narrow_the_answer(demo: Demo):
    assert len(call("sales_by_month", months=3)) == 3
    assert {row["category"] for row in call("top_products", category="Coffee")} == {"Coffee"}
    assert {row["priority"] for row in call("list_open_tickets", priority="high")} == {"high"}
    assert call("open_tickets_by_priority")[0]["priority"] in ("urgent", "high")


def test_an_administrator_decides_what_the_upstreams_tools_do(demo: Demo):
    found = {tool.name: tool for tool in Tool.objects.filter(source__name="office")}
    assert set(found) == {plan.name for plan in OFFICE_TOOLS}
    assert {name for name, tool in found.items() if tool.effect == "write"} == {"create_note", "send_reply"}
    assert all(tool.tags and tool.enabled and tool.current_id for tool in found.values())


def test_the_local_server_brings_its_clock_under_a_prefix(demo: Demo):
    clock = DataSource.objects.get(name="time")
    assert (clock.kind, clock.options["launcher"], clock.prefix) == ("mcp-stdio", "time", "time_")
    found = {tool.name: tool for tool in clock.tools.all()}
    assert set(found) == {plan.name for plan in TIME_TOOLS} == {"time_get_current_time", "time_convert_time"}
    assert {tool.effect for tool in found.values()} == {"read"}
    for tool in found.values():
        assert {toolset.name for toolset in tool.toolsets.all()} == {"support", "operations"}
    arguments = {"source_timezone": "Europe/Berlin", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    assert answer("time_convert_time", **arguments)["target"]["timezone"] == "Asia/Tokyo"


def test_options_are_stored_as_the_form_stores_them(demo: Demo):
    for source in DataSource.objects.all():
        before = source.options
        configure(source, source.options, stored_secrets(source))
        assert source.options == before
    assert DataSource.objects.get(name="support-desk").options["search_path"] == "support_desk"


def test_tools_on_the_database_only_read(demo: Demo):
    tools = Tool.objects.filter(source__name="support-desk")
    assert len(tools) == len(SQL_TOOLS) == 14
    assert {tool.effect for tool in tools} == {"read"}
    for tool in tools.select_related("current"):
        definition = json.loads(tool.current.definition)
        assert len(definition["description"]) > 40
        assert all(schema["description"] for schema in definition["inputSchema"]["properties"].values())


def test_all_sources_answer(demo: Demo):
    clock = DataSource.objects.get(name="time")
    if clock.check_ok is None:
        queued = "SELECT args->>'source_id' FROM procrastinate_jobs WHERE task_name = 'tools.check' AND status = 'todo'"
        assert (str(clock.pk),) in rows(queued)
        check_one(str(clock.pk))
    assert {source.name for source in DataSource.objects.all()} == {"support-desk", "office", "time"}
    for source in DataSource.objects.all():
        assert source.check_ok, source.check_message
        assert "Warning" not in source.check_message


def test_every_toolset_can_tell_the_time_and_roles_get_their_own(demo: Demo):
    assert {toolset.name for toolset in Toolset.objects.filter(tools__name="get_current_time")} == {
        "support",
        "analytics",
        "operations",
    }
    granted = {role.name: {grant.toolset.name for grant in role.grants.all()} for role in Role._base_manager.all()}
    assert granted == {
        "administrator": {"support", "analytics", "operations"},
        "support_agent": {"support"},
        "analyst": {"analytics"},
        "operations": {"operations"},
        "auditor": set(),
    }
    assert Tool.objects.filter(toolsets=None).count() == 0
    support, operations = (Toolset.objects.get(name=name) for name in ("support", "operations"))
    assert [prompt.name for prompt in support.prompts.all()] == ["answer_customer"]
    assert [each.uri for each in operations.resources.all()] == ["office://shipping/rates"]
    assert Resource.objects.filter(toolsets=None).count() == 0


def test_every_role_has_a_token_that_works(demo: Demo):
    assert set(demo.access.tokens) == {"administrator", "support_agent", "analyst", "operations", "auditor"}
    for role, raw in demo.access.tokens.items():
        token = find(raw)
        assert token is not None
        assert list(token.user.groups.values_list("name", flat=True)) == [role]
        assert ("write" in token.scopes) == (role == "administrator")
    assert demo.access.tokens["auditor"] not in repr(demo.access)
    path = demo.data_dir / "secrets/demo_tokens"
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_staff_can_log_in(demo: Demo):
    password = (demo.data_dir / "secrets/demo_staff_password").read_text()
    with_password = {user.username for user in User.objects.all() if user.has_usable_password()}
    assert with_password == {"ada.auditor"}
    assert User.objects.get(username="ada.auditor").check_password(password)


def test_exactly_the_demos_own_addresses_are_allowed(demo: Demo):
    port = int(demo.upstream.split(":")[2].split("/")[0])
    site = connections["default"].settings_dict
    place = (f"unix:{site['HOST']}", None) if site["HOST"].startswith("/") else ("127.0.0.1/32", int(site["PORT"]))
    assert set(EgressRule.objects.values_list("network", "port")) == {("127.0.0.1/32", port), place}


def test_what_was_created_is_on_record_without_its_secrets(demo: Demo):
    recorded = Record.objects.filter(kind="config", code="create", door="command")
    found = {(record.object_type, record.object_id) for record in recorded}
    for model in (DataSource, Tool, Toolset, Role, Grant, User, ApiToken, EgressRule):
        for each in model._base_manager.all():
            assert (model._meta.label, str(each.pk)) in found, each
    told = " ".join(record.detail or "" for record in recorded)
    secrets = [path.read_text() for path in (demo.data_dir / "secrets").iterdir() if path.name != "demo_tokens"]
    assert not [secret for secret in (*secrets, *demo.access.tokens.values()) if secret in told]


# --- Later starts ----------------------------------------------------------------------------------------------------


def test_a_later_start_asks_little_and_changes_nothing(demo: Demo):
    before = Record.objects.count()
    with CaptureQueriesContext(connection) as queries:
        assert demo.load() == demo.access
    assert len(queries) <= 8
    assert Record.objects.count() == before


def test_what_somebody_changed_stays_so(demo: Demo):
    tool = Tool.objects.get(name="late_shipments")
    Tool.objects.filter(pk=tool.pk).update(effect="write", enabled=False)
    Grant.objects.filter(role__name="analyst").delete()
    demo.load()
    tool.refresh_from_db()
    assert (tool.effect, tool.enabled) == ("write", False)
    assert not Grant.objects.filter(role__name="analyst").exists()
    Tool.objects.filter(pk=tool.pk).update(effect="read", enabled=True)
    Grant.objects.create(role=Role._base_manager.get(name="analyst"), toolset=Toolset.objects.get(name="analytics"))


def test_a_moved_upstream_is_followed(demo: Demo):
    before = set(EgressRule.objects.values_list("network", "port"))
    demo.load("http://127.0.0.1:9/mcp")
    assert DataSource.objects.get(name="office").options["url"] == "http://127.0.0.1:9/mcp"
    assert ("127.0.0.1/32", 9) in EgressRule.objects.values_list("network", "port")
    change = Record.objects.filter(code="update", object_type="tools.DataSource").latest("id")
    ((field, (old, new)),) = json.loads(change.detail or "")["changes"].items()
    assert (field, old["url"], new) == ("options", demo.upstream, {**old, "url": "http://127.0.0.1:9/mcp"})
    demo.load()
    assert set(EgressRule.objects.values_list("network", "port")) == before


def test_lost_tokens_are_made_anew(demo: Demo):
    path = demo.data_dir / "secrets/demo_tokens"
    kept = path.read_text()
    path.unlink()
    fresh = demo.load().tokens
    assert set(fresh.values()).isdisjoint(demo.access.tokens.values())
    assert all(find(raw) for raw in fresh.values())
    path.write_text(kept)
    assert demo.load() == demo.access


def test_a_load_that_was_broken_off_is_completed(demo: Demo, settings: Settings):
    settings.DATA_DIR = DataDir(demo.data_dir)
    database._set_comment(database._FILLED)
    Toolset.objects.get(name="operations").delete()
    before = ApiToken.objects.count()
    with pytest.raises(CommandError, match="upstream server cannot be used"):
        call_command("loaddemo", upstream="http://127.0.0.1:9/mcp")
    assert not database.is_complete()
    assert not Toolset.objects.filter(name="operations").exists()
    call_command("loaddemo", upstream=demo.upstream)
    assert database.is_complete()
    assert Toolset.objects.get(name="operations").grants.count() == 2
    assert ApiToken.objects.count() == before
    assert value("SELECT count(*) FROM customers") == CUSTOMERS


def test_a_schema_that_is_not_the_demos_is_left_alone(demo: Demo, settings: Settings):
    settings.DATA_DIR = DataDir(demo.data_dir)
    database._set_comment("Our real support desk.")
    with pytest.raises(CommandError, match="is not the demo's"):
        call_command("loaddemo", upstream=demo.upstream)
    assert value("SELECT count(*) FROM customers") == CUSTOMERS
    database.mark_complete()
