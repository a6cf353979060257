"""Customers, products, orders and parcels of the demo company. Amounts in euros; nothing lies after `now`."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import accumulate

from mcpsite.demo.dice import Dice
from mcpsite.demo.words import CARRIERS, COMPANIES, COUNTRIES, PRODUCTS, Country, Product

CUSTOMERS, ORDERS, DAYS = 2_800, 8_400, 730
_CENT = Decimal("0.01")
_FREE_SHIPPING_FROM = Decimal(150)
_BUSINESS_FACTOR = Decimal("0.92")
_ASCII = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "ß": "ss", "\u0131": "i", "đ": "d", " ": "", "'": ""})
_MAIL_DOMAINS = ("example.com", "example.com", "example.org")


@dataclass(frozen=True, slots=True)
class Customer:
    """A person, perhaps on behalf of a company."""

    id: int
    name: str
    company: str | None
    email: str
    country: Country
    city: str
    tier: str
    created_at: datetime

    @property
    def first_name(self) -> str:
        """What they sign with."""
        return self.name.split(" ", 1)[0]


@dataclass(frozen=True, slots=True)
class Article:
    """A product as it stands in the catalogue."""

    id: int
    sku: str
    product: Product
    launched_at: datetime
    active: bool

    @property
    def price(self) -> Decimal:
        """List price."""
        return Decimal(self.product.price)


@dataclass(frozen=True, slots=True)
class Line:
    """One position of an order."""

    article: Article
    quantity: int
    unit_price: Decimal


@dataclass(slots=True)
class Shipment:
    """The parcel of an order."""

    carrier: str
    tracking_number: str
    status: str
    shipped_at: datetime
    expected_at: datetime
    delivered_at: datetime | None = None


@dataclass(slots=True)
class Order:
    """What a customer bought."""

    id: int
    customer: Customer
    ordered_at: datetime
    delivery: str
    lines: list[Line]
    status: str = "pending"
    shipment: Shipment | None = None
    handed_over_at: datetime | None = None
    shipping_cost: Decimal = field(default=Decimal(0))

    @property
    def number(self) -> str:
        """The number that customers see."""
        return f"SO-{100_000 + self.id}"

    @property
    def items_total(self) -> Decimal:
        """What the positions add up to."""
        return sum((line.unit_price * line.quantity for line in self.lines), Decimal(0))


def _mailbox(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower().translate(_ASCII).replace("-", ""))
    return plain.encode("ascii", "ignore").decode()


def _address(first: str, last: str, taken: dict[str, int], dice: Dice) -> str:
    local = f"{_mailbox(first)}.{_mailbox(last)}"
    taken[local] = taken.get(local, 0) + 1
    number = "" if taken[local] == 1 else str(taken[local])
    return f"{local}{number}@{dice.pick(_MAIL_DOMAINS)}"


def make_customers(dice: Dice, now: datetime) -> list[Customer]:
    """Customers in the order in which they came; two in five were there before the first order of the data."""
    taken: dict[str, int] = {}
    ages = sorted((dice.between(0.02, 1.6 * DAYS) for _ in range(CUSTOMERS)), reverse=True)
    return [_customer(number, now - timedelta(days=age), taken, dice) for number, age in enumerate(ages, 1)]


def _customer(number: int, created_at: datetime, taken: dict[str, int], dice: Dice) -> Customer:
    country = dice.weighted(COUNTRIES, [each.share for each in COUNTRIES])
    first, last, city = dice.pick(country.first), dice.pick(country.last), dice.pick(country.cities)
    tier = dice.weighted(("standard", "plus", "business"), (70, 18, 12))
    return Customer(
        id=number,
        name=f"{first} {last}",
        company=f"{last} {dice.pick(COMPANIES)}" if tier == "business" else None,
        email=_address(first, last, taken, dice),
        country=country,
        city=city,
        tier=tier,
        created_at=created_at.replace(microsecond=0),
    )


def make_articles(dice: Dice, now: datetime) -> list[Article]:
    """The catalogue; some articles came later, and a few are no longer sold."""
    return [_article(number, product, dice, now) for number, product in enumerate(PRODUCTS, 1)]


def _article(number: int, product: Product, dice: Dice, now: datetime) -> Article:
    age = dice.between(60, DAYS) if dice.chance(0.15) else dice.between(DAYS, 3 * DAYS)
    sku = f"{product.category[:3].upper()}-{1000 + 7 * number}"
    return Article(number, sku, product, now - timedelta(days=age), not dice.chance(0.05))


def make_orders(dice: Dice, now: datetime, customers: list[Customer], articles: list[Article]) -> list[Order]:
    """Orders of the last two years, more of them lately, each as far as it can have come by `now`."""
    since = [customer.created_at for customer in customers]
    appeal = list(accumulate(1 / rank**0.6 for rank in _shuffled_ranks(dice, len(articles))))
    ages = sorted((DAYS * dice.roll() ** 1.3 for _ in range(ORDERS)), reverse=True)
    orders = []
    for number, age in enumerate(ages, 1):
        ordered_at = (now - timedelta(days=age)).replace(microsecond=0)
        known = bisect_right(since, ordered_at)
        customer = customers[int(known * dice.roll() ** 1.2)]
        order = Order(number, customer, ordered_at, *_basket(dice, customer, ordered_at, articles, appeal))
        _move_on(order, dice, now)
        orders.append(order)
    return orders


def _shuffled_ranks(dice: Dice, count: int) -> list[int]:
    return [rank for _, rank in sorted((dice.roll(), rank) for rank in range(1, count + 1))]


def _basket(
    dice: Dice, customer: Customer, at: datetime, articles: list[Article], appeal: list[float]
) -> tuple[str, list[Line]]:
    size = dice.weighted((1, 2, 3, 4), (52, 28, 14, 6))
    chosen = {article.id: article for article in (_on_sale(dice, at, articles, appeal) for _ in range(size))}
    delivery = "pickup" if customer.country.code == "DE" and dice.chance(0.45) else "parcel"
    return delivery, [_line(dice, customer, article) for article in chosen.values()]


def _on_sale(dice: Dice, at: datetime, articles: list[Article], appeal: list[float]) -> Article:
    article = dice.by_sums(articles, appeal)
    return article if article.launched_at <= at else _on_sale(dice, at, articles, appeal)


def _line(dice: Dice, customer: Customer, article: Article) -> Line:
    cheap = article.price < 60
    quantity = dice.weighted((1, 2, 3, 5), (75, 17, 6, 2)) if cheap else dice.weighted((1, 2), (94, 6))
    if customer.tier != "business":
        return Line(article, quantity, article.price)
    price = (article.price * _BUSINESS_FACTOR).quantize(_CENT, ROUND_HALF_UP)
    return Line(article, quantity * dice.pick((1, 1, 2, 4)), price)


def _move_on(order: Order, dice: Dice, now: datetime) -> None:
    """Give the order the state that it has by `now`."""
    if order.delivery == "parcel" and order.items_total < _FREE_SHIPPING_FROM:
        order.shipping_cost = Decimal(order.customer.country.shipping)
    paid_at = order.ordered_at + (dice.hours(0.02, 0.2) if dice.chance(0.85) else dice.hours(8, 60))
    packed_at = paid_at + dice.hours(4, 40)
    leaves_at = packed_at + dice.hours(2, 20)
    if dice.chance(0.05) and paid_at < now:
        order.status = "cancelled"
    elif now < leaves_at:
        order.status = "pending" if now < paid_at else "paid" if now < packed_at else "packed"
    elif order.delivery == "pickup":
        _hand_over(order, leaves_at + dice.hours(2, 90), "packed", dice, now)
    else:
        _ship(order, leaves_at, dice, now)


def _hand_over(order: Order, at: datetime, before: str, dice: Dice, now: datetime) -> None:
    if at > now:
        order.status = before
        return
    order.handed_over_at = at
    returned = dice.chance(0.05) and at + timedelta(days=20) < now
    order.status = "returned" if returned else "delivered"


def _ship(order: Order, shipped_at: datetime, dice: Dice, now: datetime) -> None:
    slowest = order.customer.country.days[1]
    days = dice.between(*order.customer.country.days)
    late = dice.chance(0.12)
    arrives_at = shipped_at + timedelta(days=int(days) + (dice.whole(4, 12) if late else 0)) + dice.hours(1, 9)
    carrier = dice.pick(CARRIERS)
    number = f"{carrier}{dice.whole(10**11, 10**12 - 1)}{order.id % 97:02d}"
    parcel = Shipment(carrier, number, "in_transit", shipped_at, shipped_at + timedelta(days=slowest))
    order.shipment = parcel
    if late and dice.chance(0.08) and now > arrives_at:
        order.status, parcel.status = "shipped", "lost"
        return
    _hand_over(order, arrives_at, "shipped", dice, now)
    if order.handed_over_at:
        parcel.delivered_at, parcel.status = order.handed_over_at, "delivered"
    elif parcel.expected_at < now:
        parcel.status = "delayed"
    elif arrives_at - now < timedelta(hours=8):
        parcel.status = "out_for_delivery"
    elif now - shipped_at < timedelta(hours=6):
        parcel.status = "label_created"
