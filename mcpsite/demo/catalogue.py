"""What the demo offers: tools on the company's database, toolsets, roles, people and service accounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STATUSES = ["pending", "paid", "packed", "shipped", "delivered", "cancelled", "returned"]
TICKET_STATUSES = ["open", "waiting", "resolved", "closed"]
PRIORITIES = ["urgent", "high", "normal", "low"]
CATEGORIES = [
    "Coffee",
    "Lighting",
    "Audio",
    "Smart home",
    "Bags",
    "Camping",
    "Cycling",
    "Kitchen",
    "Office",
    "Garden",
]


@dataclass(frozen=True, slots=True)
class SqlTool:
    """A tool on the demo's database."""

    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    statement: str
    parameters: tuple[dict[str, Any], ...] = ()

    @property
    def spec(self) -> dict[str, Any]:
        """As the SQL connector takes it."""
        return {
            "title": self.title,
            "description": self.description,
            "statement": self.statement.strip(),
            "parameters": list(self.parameters),
        }


def _text(name: str, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "string", "description": description, "max_length": 200, **more}


def _choice(name: str, description: str, values: list[str]) -> dict[str, Any]:
    return {"name": name, "type": "string", "description": description, "required": False, "allowed_values": values}


def _number(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "type": "integer", "description": description, "minimum": 1, "maximum": 2_000_000_000}


def _count(name: str, description: str, default: int, maximum: int) -> dict[str, Any]:
    limits = {"minimum": 1, "maximum": maximum, "default": default, "required": False}
    return {"name": name, "type": "integer", "description": description, **limits}


_MAX_RESULTS = _count("max_results", "How many at the most.", 20, 100)
_DAYS = _count("days", "How many days to look back.", 90, 730)

SQL_TOOLS = (
    SqlTool(
        "find_customer",
        "Find customers",
        "Find customers by e-mail address (exact) or by a part of their name or company. Use it first when you know"
        " who writes but not the customer's number. Returns number, name, company, e-mail, country and tier.",
        ("support",),
        """
SELECT c.id, c.name, c.company, c.email, c.country, c.city, c.tier
FROM customers c
WHERE lower(c.email) = lower(:query)
   OR strpos(lower(c.name), lower(:query)) > 0
   OR strpos(lower(coalesce(c.company, '')), lower(:query)) > 0
ORDER BY c.name, c.id
LIMIT :max_results
""",
        (_text("query", "E-mail address, or part of a name or company.", pattern=r"\S.*\S"), _MAX_RESULTS),
    ),
    SqlTool(
        "get_customer",
        "Get a customer",
        "Get one customer with the number of orders, what they spent in euros (without cancelled and returned orders)"
        " and how many tickets are open.",
        ("support",),
        """
SELECT c.*,
       (SELECT count(*) FROM orders o WHERE o.customer_id = c.id) AS orders,
       (SELECT coalesce(sum(o.total), 0) FROM orders o
         WHERE o.customer_id = c.id AND o.status NOT IN ('cancelled', 'returned')) AS spent_eur,
       (SELECT max(o.ordered_at) FROM orders o WHERE o.customer_id = c.id) AS last_order_at,
       (SELECT count(*) FROM tickets t
         WHERE t.customer_id = c.id AND t.status IN ('open', 'waiting')) AS open_tickets
FROM customers c
WHERE c.id = :customer_id
""",
        (_number("customer_id", "Number of the customer."),),
    ),
    SqlTool(
        "list_customer_orders",
        "List a customer's orders",
        "List the orders of one customer, newest first, with status and total in euros.",
        ("support",),
        """
SELECT o.number, o.status, o.delivery, o.total, o.ordered_at, s.status AS shipment, s.tracking_number
FROM orders o
LEFT JOIN shipments s ON s.order_id = o.id
WHERE o.customer_id = :customer_id AND (:status IS NULL OR o.status = :status)
ORDER BY o.ordered_at DESC
LIMIT :max_results
""",
        (
            _number("customer_id", "Number of the customer."),
            _choice("status", "Only orders with this status.", STATUSES),
            _MAX_RESULTS,
        ),
    ),
    SqlTool(
        "get_order",
        "Get an order",
        "Get one order by its number (such as SO-100042) with its items, the customer and the parcel.",
        ("support", "operations"),
        """
SELECT o.number, o.status, o.delivery, o.items_total, o.shipping_cost, o.total, o.ordered_at,
       c.id AS customer_id, c.name AS customer, c.country,
       s.carrier, s.tracking_number, s.status AS shipment,
       (SELECT json_agg(json_build_object('sku', p.sku, 'name', p.name, 'quantity', i.quantity,
                                          'unit_price', i.unit_price) ORDER BY i.line)
          FROM order_items i JOIN products p ON p.id = i.product_id
         WHERE i.order_id = o.id) AS items
FROM orders o
JOIN customers c ON c.id = o.customer_id
LEFT JOIN shipments s ON s.order_id = o.id
WHERE o.number = upper(:number)
""",
        (_text("number", "Number of the order, e.g. SO-100042.", pattern="^[Ss][Oo]-[0-9]{6}$"),),
    ),
    SqlTool(
        "track_shipment",
        "Track a shipment",
        "Tell where a parcel is, by the number of its order or by the carrier's tracking number. Returns nothing for"
        " orders that were not sent yet or that are collected in the shop.",
        ("support", "operations"),
        """
SELECT s.tracking_number, s.carrier, s.status, s.shipped_at, s.expected_on, s.delivered_at,
       s.delivered_at IS NULL AND s.expected_on < current_date AS overdue,
       o.number AS order_number, c.name AS customer, c.city, c.country
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers c ON c.id = o.customer_id
WHERE s.tracking_number = upper(:reference) OR o.number = upper(:reference)
""",
        (_text("reference", "Number of the order or tracking number."),),
    ),
    SqlTool(
        "search_tickets",
        "Search tickets",
        "Search subjects and messages of tickets by words (English stemming; quotes for phrases, - to exclude)."
        " Best matches first. Use get_ticket_thread to read one.",
        ("support",),
        """
WITH hits AS (
    SELECT t.id AS ticket_id,
           2 * ts_rank(to_tsvector('english', t.subject), websearch_to_tsquery('english', :query)) AS rank
    FROM tickets t
    WHERE to_tsvector('english', t.subject) @@ websearch_to_tsquery('english', :query)
    UNION ALL
    SELECT m.ticket_id, ts_rank(to_tsvector('english', m.body), websearch_to_tsquery('english', :query))
    FROM messages m
    WHERE to_tsvector('english', m.body) @@ websearch_to_tsquery('english', :query)
)
SELECT t.id, t.subject, t.status, t.priority, c.name AS customer, o.number AS order_number, t.created_at
FROM hits
JOIN tickets t ON t.id = hits.ticket_id
JOIN customers c ON c.id = t.customer_id
LEFT JOIN orders o ON o.id = t.order_id
WHERE :status IS NULL OR t.status = :status
GROUP BY t.id, c.name, o.number
ORDER BY max(hits.rank) DESC, t.created_at DESC
LIMIT :max_results
""",
        (
            _text("query", "Words to look for."),
            _choice("status", "Only tickets with this status.", TICKET_STATUSES),
            _MAX_RESULTS,
        ),
    ),
    SqlTool(
        "get_ticket_thread",
        "Get a ticket's thread",
        "Get one ticket with all of its messages, oldest first, and the order and product that it is about.",
        ("support",),
        """
SELECT t.id, t.subject, t.status, t.priority, t.channel, t.assignee, t.created_at, t.resolved_at,
       c.id AS customer_id, c.name AS customer, o.number AS order_number, p.name AS product,
       (SELECT json_agg(json_build_object('from', m.author, 'name', m.author_name, 'sent_at', m.sent_at,
                                          'text', m.body) ORDER BY m.sent_at, m.id)
          FROM messages m WHERE m.ticket_id = t.id) AS messages
FROM tickets t
JOIN customers c ON c.id = t.customer_id
LEFT JOIN orders o ON o.id = t.order_id
LEFT JOIN products p ON p.id = t.product_id
WHERE t.id = :ticket_id
""",
        (_number("ticket_id", "Number of the ticket."),),
    ),
    SqlTool(
        "list_open_tickets",
        "List open tickets",
        "List tickets that are open or wait for the customer, the most urgent and oldest first.",
        ("support", "operations"),
        """
SELECT t.id, t.subject, t.status, t.priority, t.assignee, c.name AS customer, t.created_at,
       round(extract(epoch FROM now() - t.created_at) / 3600, 1) AS age_hours
FROM tickets t
JOIN customers c ON c.id = t.customer_id
WHERE t.status IN ('open', 'waiting') AND (:priority IS NULL OR t.priority = :priority)
ORDER BY array_position(ARRAY['urgent', 'high', 'normal', 'low'], t.priority), t.created_at
LIMIT :max_results
""",
        (_choice("priority", "Only tickets with this priority.", PRIORITIES), _MAX_RESULTS),
    ),
    SqlTool(
        "open_tickets_by_priority",
        "Open tickets by priority",
        "Count the open and the waiting tickets by priority, with the age of the oldest one in hours.",
        ("support", "operations", "analytics"),
        """
SELECT t.priority,
       count(*) FILTER (WHERE t.status = 'open') AS open,
       count(*) FILTER (WHERE t.status = 'waiting') AS waiting,
       count(*) FILTER (WHERE t.assignee IS NULL) AS unassigned,
       round(extract(epoch FROM now() - min(t.created_at)) / 3600, 1) AS oldest_hours
FROM tickets t
WHERE t.status IN ('open', 'waiting')
GROUP BY t.priority
ORDER BY array_position(ARRAY['urgent', 'high', 'normal', 'low'], t.priority)
""",
    ),
    SqlTool(
        "sales_by_month",
        "Sales by month",
        "Orders, revenue in euros and average order value of each month, newest first, without cancelled and returned"
        " orders. Optionally for one country.",
        ("analytics",),
        """
SELECT to_char(date_trunc('month', o.ordered_at), 'YYYY-MM') AS month,
       count(*) AS orders,
       sum(o.total) AS revenue_eur,
       round(avg(o.total), 2) AS average_eur,
       count(DISTINCT o.customer_id) AS customers
FROM orders o
JOIN customers c ON c.id = o.customer_id
WHERE o.status NOT IN ('cancelled', 'returned') AND (:country IS NULL OR c.country = upper(:country))
GROUP BY date_trunc('month', o.ordered_at)
ORDER BY date_trunc('month', o.ordered_at) DESC
LIMIT :months
""",
        (
            _count("months", "How many months, the present one included.", 12, 36),
            _text("country", "ISO 3166-1 alpha-2 code.", required=False, pattern="^[A-Za-z]{2}$"),
        ),
    ),
    SqlTool(
        "top_products",
        "Best-selling products",
        "The products with the highest revenue in euros of the last days, optionally of one category.",
        ("analytics",),
        """
SELECT p.sku, p.name, p.category, sum(i.quantity) AS sold, sum(i.quantity * i.unit_price) AS revenue_eur
FROM order_items i
JOIN orders o ON o.id = i.order_id
JOIN products p ON p.id = i.product_id
WHERE o.status NOT IN ('cancelled', 'returned')
  AND o.ordered_at >= now() - make_interval(days => CAST(:days AS integer))
  AND (:category IS NULL OR p.category = :category)
GROUP BY p.id
ORDER BY revenue_eur DESC
LIMIT :max_results
""",
        (_DAYS, _choice("category", "Only this category.", CATEGORIES), _MAX_RESULTS),
    ),
    SqlTool(
        "ticket_statistics",
        "Ticket statistics",
        "Tickets of the last days by product category: how many, how many are unresolved, and the median hours until"
        " they were resolved.",
        ("analytics",),
        """
SELECT coalesce(p.category, 'none') AS category,
       count(*) AS tickets,
       count(*) FILTER (WHERE t.resolved_at IS NULL) AS unresolved,
       round(CAST(percentile_cont(0.5) WITHIN GROUP (
           ORDER BY extract(epoch FROM t.resolved_at - t.created_at) / 3600) AS numeric), 1) AS median_hours
FROM tickets t
LEFT JOIN products p ON p.id = t.product_id
WHERE t.created_at >= now() - make_interval(days => CAST(:days AS integer))
GROUP BY p.category
ORDER BY tickets DESC
""",
        (_DAYS,),
    ),
    SqlTool(
        "late_shipments",
        "Late shipments",
        "Parcels on their way that should have arrived by now, the most overdue first, optionally of one carrier."
        " Lost parcels are left out.",
        ("operations",),
        """
SELECT s.tracking_number, s.carrier, s.status, s.shipped_at, s.expected_on,
       current_date - s.expected_on AS days_late,
       o.number AS order_number, o.total, c.name AS customer, c.country
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers c ON c.id = o.customer_id
WHERE s.delivered_at IS NULL AND s.status <> 'lost' AND s.expected_on < current_date
  AND (:carrier IS NULL OR s.carrier = :carrier)
ORDER BY s.expected_on
LIMIT :max_results
""",
        (_choice("carrier", "Only this carrier.", ["DHL", "DPD", "GLS", "UPS"]), _MAX_RESULTS),
    ),
    SqlTool(
        "orders_to_ship",
        "Orders to ship",
        "Orders that are paid or packed and still have to leave, the oldest first, with their weight in kilograms.",
        ("operations",),
        """
SELECT o.number, o.status, o.delivery, c.country, o.ordered_at, sum(i.quantity * p.weight_kg) AS weight_kg
FROM orders o
JOIN customers c ON c.id = o.customer_id
JOIN order_items i ON i.order_id = o.id
JOIN products p ON p.id = i.product_id
WHERE o.status IN ('paid', 'packed')
GROUP BY o.id, c.country
ORDER BY o.ordered_at
LIMIT :max_results
""",
        (_MAX_RESULTS,),
    ),
)


@dataclass(frozen=True, slots=True)
class UpstreamTool:
    """What an administrator decides about a tool of an upstream server."""

    name: str
    effect: str
    tags: tuple[str, ...]


OFFICE_TOOLS = (
    UpstreamTool("get_current_time", "read", ("support", "analytics", "operations")),
    UpstreamTool("convert_currency", "read", ("support", "analytics")),
    UpstreamTool("shipping_quote", "read", ("support", "operations")),
    UpstreamTool("list_notes", "read", ("support",)),
    UpstreamTool("create_note", "write", ("support", "operations")),
    UpstreamTool("send_reply", "write", ("support",)),
)
# What else the office offers, by name or URI, with the toolsets that it is in.
OFFICE_PROMPTS: dict[str, tuple[str, ...]] = {"answer_customer": ("support",)}
OFFICE_RESOURCES: dict[str, tuple[str, ...]] = {
    "office://shipping/rates": ("support", "operations"),
    "office://tickets/{ticket_id}/notes": ("support",),
}
# Both servers have a clock: the prefix tells them apart.
TIME_PREFIX = "time_"
TIME_TOOLS = (
    UpstreamTool("time_get_current_time", "read", ("support", "operations")),
    UpstreamTool("time_convert_time", "read", ("support", "operations")),
)


@dataclass(frozen=True, slots=True)
class ToolsetPlan:
    """Whatever of the demo has the tag of the toolset's name, and the role that may use it."""

    name: str
    title: str
    description: str
    role: str
    role_description: str


TOOLSETS = (
    ToolsetPlan(
        "support",
        "Support desk",
        "Find customers, orders and tickets; take notes and answer.",
        role="support_agent",
        role_description="Answers customers.",
    ),
    ToolsetPlan(
        "analytics",
        "Analytics",
        "Sales, products and tickets in figures. Reads only.",
        role="analyst",
        role_description="Looks at figures, not at single customers.",
    ),
    ToolsetPlan(
        "operations",
        "Operations",
        "Parcels, late deliveries and what has to leave the warehouse.",
        role="operations",
        role_description="Gets parcels out of the house.",
    ),
)


@dataclass(frozen=True, slots=True)
class UserPlan:
    """A person or a service account. `token` names the token that it gets; staff can log in to the admin."""

    username: str
    first_name: str
    last_name: str
    role: str
    token: str | None = None
    scopes: tuple[str, ...] = ("tools", "read")
    is_service: bool = False
    is_staff: bool = False


USERS = (
    UserPlan("maria.support", "Maria", "Santos", "support_agent", "desktop assistant"),
    UserPlan("ben.support", "Ben", "Fischer", "support_agent"),
    UserPlan("arjun.analyst", "Arjun", "Mehta", "analyst"),
    UserPlan("olga.operations", "Olga", "Marchenko", "operations"),
    UserPlan("ada.auditor", "Ada", "Nilsson", "auditor", "ledger reader", is_staff=True),
    UserPlan("automation", "", "", "administrator", "automation", ("tools", "read", "write"), is_service=True),
    UserPlan("reporting", "", "", "analyst", "nightly reports", is_service=True),
    UserPlan("warehouse", "", "", "operations", "warehouse terminal", is_service=True),
)
