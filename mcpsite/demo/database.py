"""The demo company's database: a schema of its own, filled in one transaction, and a role that can only read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from django.conf import settings
from django.db import ProgrammingError, connections, transaction
from psycopg import sql

from mcpsite.demo.dice import Dice
from mcpsite.demo.tickets import Ticket, make_tickets
from mcpsite.demo.trade import Article, Customer, Order, make_articles, make_customers, make_orders

SCHEMA = "support_desk"
_SEED = 20_260_101
_FILLED = "The demo company of mcpsite: customers, orders, shipments, tickets. All of it is made up."
_COMPLETE = f"{_FILLED} Version 1, complete."
_LONGEST_NAME = 63


class DemoRefused(Exception):
    """The demo cannot be loaded; the text is a sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: columns as (name, type, comment), and what is added once the rows are in."""

    name: str
    comment: str
    columns: tuple[tuple[str, str, str], ...]
    afterwards: tuple[str, ...] = ()


TABLES = (
    Table(
        "customers",
        "People who bought something or wrote to us.",
        (
            ("id", "integer PRIMARY KEY", "Number of the customer."),
            ("name", "text NOT NULL", "First and last name."),
            ("company", "text", "Company, for business customers."),
            ("email", "text NOT NULL", "E-mail address, unique."),
            ("country", "char(2) NOT NULL", "ISO 3166-1 alpha-2."),
            ("city", "text NOT NULL", "City."),
            ("language", "char(2) NOT NULL", "Preferred language, ISO 639-1."),
            ("tier", "text NOT NULL CHECK (tier IN ('standard', 'plus', 'business'))", "Business pays 8 % less."),
            ("created_at", "timestamptz NOT NULL", "When the account was opened."),
        ),
        ("CREATE UNIQUE INDEX ON customers (lower(email))", "CREATE INDEX ON customers (country)"),
    ),
    Table(
        "products",
        "What is sold.",
        (
            ("id", "integer PRIMARY KEY", "Number of the product."),
            ("sku", "text NOT NULL UNIQUE", "Article number."),
            ("name", "text NOT NULL", "Name."),
            ("category", "text NOT NULL", "One of ten categories."),
            ("price", "numeric(10,2) NOT NULL CHECK (price > 0)", "List price in euros."),
            ("weight_kg", "numeric(6,2) NOT NULL", "Weight in kilograms."),
            ("launched_on", "date NOT NULL", "First day of sale."),
            ("active", "boolean NOT NULL", "Whether it is still sold."),
        ),
        ("CREATE INDEX ON products (category)",),
    ),
    Table(
        "orders",
        "Orders; the total is the sum of the items and the shipping cost.",
        (
            ("id", "integer PRIMARY KEY", "Internal number."),
            ("number", "text NOT NULL UNIQUE", "Number that customers see, e.g. SO-100042."),
            ("customer_id", "integer NOT NULL", "Who ordered."),
            (
                "status",
                "text NOT NULL CHECK (status IN"
                " ('pending', 'paid', 'packed', 'shipped', 'delivered', 'cancelled', 'returned'))",
                "How far it has come; pending waits for payment.",
            ),
            ("delivery", "text NOT NULL CHECK (delivery IN ('parcel', 'pickup'))", "Sent, or collected in the shop."),
            ("items_total", "numeric(10,2) NOT NULL", "Sum of the items in euros."),
            ("shipping_cost", "numeric(10,2) NOT NULL", "Shipping in euros; free from 150 euros on."),
            (
                "total",
                "numeric(10,2) NOT NULL CHECK (total = items_total + shipping_cost)",
                "What was charged, in euros.",
            ),
            ("ordered_at", "timestamptz NOT NULL", "When it was placed."),
        ),
        (
            "ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers",
            "CREATE INDEX ON orders (customer_id)",
            "CREATE INDEX ON orders (ordered_at)",
            "CREATE INDEX ON orders (status) WHERE status NOT IN ('delivered', 'cancelled', 'returned')",
        ),
    ),
    Table(
        "order_items",
        "Positions of the orders.",
        (
            ("order_id", "integer NOT NULL", "The order."),
            ("line", "smallint NOT NULL", "Position, from 1."),
            ("product_id", "integer NOT NULL", "The product."),
            ("quantity", "integer NOT NULL CHECK (quantity > 0)", "How many."),
            ("unit_price", "numeric(10,2) NOT NULL", "Price of one, in euros, at the time of the order."),
        ),
        (
            "ALTER TABLE order_items ADD PRIMARY KEY (order_id, line)",
            "ALTER TABLE order_items ADD FOREIGN KEY (order_id) REFERENCES orders",
            "ALTER TABLE order_items ADD FOREIGN KEY (product_id) REFERENCES products",
            "CREATE INDEX ON order_items (product_id)",
        ),
    ),
    Table(
        "shipments",
        "Parcels, one an order.",
        (
            ("id", "integer PRIMARY KEY", "Number of the parcel."),
            ("order_id", "integer NOT NULL UNIQUE", "The order."),
            ("carrier", "text NOT NULL", "Who carries it."),
            ("tracking_number", "text NOT NULL UNIQUE", "The carrier's number."),
            (
                "status",
                "text NOT NULL CHECK (status IN"
                " ('label_created', 'in_transit', 'out_for_delivery', 'delivered', 'delayed', 'lost'))",
                "Where it is.",
            ),
            ("shipped_at", "timestamptz NOT NULL", "When it left the warehouse."),
            ("expected_on", "date NOT NULL", "When it should arrive at the latest."),
            ("delivered_at", "timestamptz", "When it arrived; empty until then."),
        ),
        (
            "ALTER TABLE shipments ADD FOREIGN KEY (order_id) REFERENCES orders",
            "CREATE INDEX ON shipments (status) WHERE status <> 'delivered'",
        ),
    ),
    Table(
        "tickets",
        "What customers ask and complain about.",
        (
            ("id", "integer PRIMARY KEY", "Number of the ticket."),
            ("customer_id", "integer NOT NULL", "Who asks."),
            ("order_id", "integer", "The order that it is about, if any."),
            ("product_id", "integer", "The product that it is about, if any."),
            ("subject", "text NOT NULL", "One line."),
            (
                "status",
                "text NOT NULL CHECK (status IN ('open', 'waiting', 'resolved', 'closed'))",
                "open: the desk is to act; waiting: the customer is; closed: a week after it was resolved.",
            ),
            ("priority", "text NOT NULL CHECK (priority IN ('low', 'normal', 'high', 'urgent'))", "How urgent it is."),
            ("channel", "text NOT NULL CHECK (channel IN ('email', 'chat', 'phone', 'web'))", "How it came in."),
            ("assignee", "text", "Who works on it; empty: nobody yet."),
            ("created_at", "timestamptz NOT NULL", "When it came in."),
            ("resolved_at", "timestamptz", "When it was resolved; empty until then."),
        ),
        (
            "ALTER TABLE tickets ADD FOREIGN KEY (customer_id) REFERENCES customers",
            "ALTER TABLE tickets ADD FOREIGN KEY (order_id) REFERENCES orders",
            "ALTER TABLE tickets ADD FOREIGN KEY (product_id) REFERENCES products",
            "CREATE INDEX ON tickets (customer_id)",
            "CREATE INDEX ON tickets (order_id)",
            "CREATE INDEX ON tickets (created_at)",
            "CREATE INDEX ON tickets (priority) WHERE status IN ('open', 'waiting')",
            "CREATE INDEX ON tickets USING gin (to_tsvector('english', subject))",
        ),
    ),
    Table(
        "messages",
        "The threads of the tickets.",
        (
            ("id", "integer PRIMARY KEY", "Number of the message."),
            ("ticket_id", "integer NOT NULL", "The ticket."),
            ("author", "text NOT NULL CHECK (author IN ('customer', 'agent'))", "Which side wrote."),
            ("author_name", "text NOT NULL", "Who wrote."),
            ("body", "text NOT NULL", "The text."),
            ("sent_at", "timestamptz NOT NULL", "When it was sent."),
        ),
        (
            "ALTER TABLE messages ADD FOREIGN KEY (ticket_id) REFERENCES tickets",
            "CREATE INDEX ON messages (ticket_id, sent_at)",
            "CREATE INDEX ON messages USING gin (to_tsvector('english', body))",
        ),
    ),
)

Row = tuple[Any, ...]


# --- Rows ------------------------------------------------------------------------------------------------------------


def make_rows(now: datetime) -> dict[str, list[Row]]:
    """Table → rows in the order of its columns. The same for every `now`, moved in time."""
    dice = Dice(_SEED)
    customers, articles = make_customers(dice, now), make_articles(dice, now)
    orders = make_orders(dice, now, customers, articles)
    tickets = make_tickets(dice, now, customers, articles, orders)
    return {
        "customers": [_customer_row(customer) for customer in customers],
        "products": [_product_row(article) for article in articles],
        "orders": [_order_row(order) for order in orders],
        "order_items": [row for order in orders for row in _item_rows(order)],
        "shipments": list(_shipment_rows(orders)),
        "tickets": [_ticket_row(number, ticket) for number, ticket in enumerate(tickets, 1)],
        "messages": _message_rows(tickets),
    }


def _customer_row(c: Customer) -> Row:
    return (c.id, c.name, c.company, c.email, c.country.code, c.city, c.country.language, c.tier, c.created_at)


def _product_row(a: Article) -> Row:
    p = a.product
    return (a.id, a.sku, p.name, p.category, a.price, p.weight, a.launched_at.date(), a.active)


def _order_row(o: Order) -> Row:
    total = o.items_total + o.shipping_cost
    return (o.id, o.number, o.customer.id, o.status, o.delivery, o.items_total, o.shipping_cost, total, o.ordered_at)


def _item_rows(o: Order) -> Iterator[Row]:
    for number, line in enumerate(o.lines, 1):
        yield (o.id, number, line.article.id, line.quantity, line.unit_price)


def _shipment_rows(orders: Iterable[Order]) -> Iterator[Row]:
    sent = [(order, order.shipment) for order in orders if order.shipment is not None]
    sent.sort(key=lambda pair: pair[1].shipped_at)
    for number, (order, s) in enumerate(sent, 1):
        expected_on = s.expected_at.date()
        yield (number, order.id, s.carrier, s.tracking_number, s.status, s.shipped_at, expected_on, s.delivered_at)


def _ticket_row(number: int, t: Ticket) -> Row:
    about = (t.order.id if t.order else None, t.article.id if t.article else None)
    state = (t.subject, t.status, t.priority, t.channel, t.assignee, t.created_at, t.resolved_at)
    return (number, t.customer.id, *about, *state)


def _message_rows(tickets: Sequence[Ticket]) -> list[Row]:
    said = [(number, message) for number, ticket in enumerate(tickets, 1) for message in ticket.messages]
    said.sort(key=lambda pair: pair[1].sent_at)
    return [(number, ticket, m.author, m.author_name, m.body, m.sent_at) for number, (ticket, m) in enumerate(said, 1)]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def is_complete() -> bool:
    """Whether `mark_complete` was called since the schema exists. One query, as the site's role."""
    return _comment("default") == _COMPLETE


def mark_complete() -> None:
    """Remember, at the schema, that all of the demo was loaded."""
    _set_comment(_COMPLETE)


def _comment(alias: str) -> str | None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT obj_description(to_regnamespace(%s), 'pg_namespace')", [SCHEMA])
        found: str | None = cursor.fetchone()[0]
    return found


def _set_comment(text: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(SCHEMA), sql.Literal(text)))


def reader_name() -> str:
    """The role that reads the demo. Roles belong to the whole server, so the database's name is part of it."""
    suffix = "_demo_reader"
    name: str = connections["owner"].settings_dict["NAME"]
    return name[: _LONGEST_NAME - len(suffix)] + suffix


def fill(reader_password: str) -> None:
    """Make the schema with its data, unless it is there, and the reading role. Raises DemoRefused."""
    owner = connections["owner"]
    try:
        with transaction.atomic(using="owner"), owner.cursor() as cursor:
            if _comment("owner") not in (_FILLED, _COMPLETE):
                _create(cursor)
            _create_reader(cursor, reader_password)
    except ProgrammingError as error:
        if isinstance(error.__cause__, psycopg.errors.DuplicateSchema):
            raise DemoRefused(f"There is a schema {SCHEMA} that is not the demo's: rename or drop it.") from error
        if not isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            raise
        raise DemoRefused(
            f"{owner.settings_dict['USER']} may not load the demo ({str(error).strip()}): it needs CREATE on the "
            f"database and the attribute CREATEROLE. Grant both, or set DATABASE_OWNER_URL to a role that has them."
        ) from error


def _create(cursor: Any) -> None:
    schema = sql.Identifier(SCHEMA)
    cursor.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    cursor.execute(sql.SQL("SET LOCAL search_path = {}").format(schema))
    rows = make_rows(datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    for table in TABLES:
        _create_table(cursor, table)
        _copy(cursor, table, rows[table.name])
    for table in TABLES:
        for statement in table.afterwards:
            cursor.execute(statement)
        cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table.name)))
    _set_comment(_FILLED)


def _create_table(cursor: Any, table: Table) -> None:
    name = sql.Identifier(table.name)
    columns = ", ".join(f"{column} {kind}" for column, kind, _ in table.columns)
    cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(name, sql.SQL(columns)))
    cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, sql.Literal(table.comment)))
    for column, _, comment in table.columns:
        target = sql.Identifier(table.name, column)
        cursor.execute(sql.SQL("COMMENT ON COLUMN {} IS {}").format(target, sql.Literal(comment)))


def _copy(cursor: Any, table: Table, rows: list[Row]) -> None:
    columns = sql.SQL(", ").join(sql.Identifier(column) for column, _, _ in table.columns)
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
    with cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


_READER_STATEMENTS = (
    "ALTER ROLE {role} SET default_transaction_read_only = on",
    "ALTER ROLE {role} SET search_path = {schema}",
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
)


def _create_reader(cursor: Any, password: str) -> None:
    role = reader_name()
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
    if cursor.fetchone() is None:
        cursor.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    # The server is given the verifier, never the password itself.
    verifier = cursor.connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    login = sql.SQL("ALTER ROLE {} LOGIN NOINHERIT PASSWORD {}")
    cursor.execute(login.format(sql.Identifier(role), sql.Literal(verifier)))
    names = {"role": role, "schema": SCHEMA, "database": connections["owner"].settings_dict["NAME"]}
    for statement in _READER_STATEMENTS:
        cursor.execute(sql.SQL(statement).format(**{key: sql.Identifier(name) for key, name in names.items()}))
    if settings.EMBEDDED_DATABASE:
        # Our own server: there, nobody relies on what PUBLIC may do. The site's role has its own grant.
        cursor.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
