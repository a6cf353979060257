"""What the demo's upstream server can do, as plain functions: clock, currencies, shipping, notes and replies."""

from __future__ import annotations

import difflib
import uuid
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

RATES_AS_OF = "2026-01-02"
# Units of each currency for one euro. Nobody should pay with these.
RATES = {
    "EUR": 1.0,
    "USD": 1.1721,
    "GBP": 0.8718,
    "CHF": 0.9306,
    "SEK": 10.8215,
    "NOK": 11.8430,
    "DKK": 7.4690,
    "PLN": 4.2240,
    "CZK": 24.2370,
    "JPY": 183.64,
    "INR": 105.42,
    "CAD": 1.6088,
    "BRL": 6.4364,
    "KRW": 1690.5,
    "MXN": 21.118,
    "TRY": 50.483,
}
_WHOLE_UNITS = {"JPY", "KRW"}

# zone → (base price, price of each kilogram, fastest and slowest delivery in days)
_ZONES = {
    "domestic": (4.90, 0.40, 1, 2),
    "europe": (9.90, 1.10, 2, 5),
    "world": (24.90, 6.50, 6, 14),
}
HOME = "DE"
_EUROPE = "AT BE BG CH CY CZ DK EE ES FI FR GB GR HR HU IE IT LT LU LV MT NL NO PL PT RO SE SI SK UA"
_WORLD = "AU BR CA CN EG IN JP KR MX NG NZ SG TR US VN ZA"
HEAVIEST_KG = 30.0


# The tones of an answer, and what each asks of whoever writes it.
TONES = {
    "friendly": "Be warm, and use the customer's name.",
    "formal": "Be polite and plain.",
    "sorry": "Begin with an apology, and say what happens next.",
}


class OfficeError(Exception):
    """What was asked for cannot be done; the text is a sentence for whoever asked."""


class CurrentTime(BaseModel):
    """The time of day somewhere."""

    timezone: str = Field(description="IANA name of the time zone.")
    datetime: str = Field(description="Local date and time with offset, ISO 8601.")
    utc_offset: str = Field(description="Offset from UTC, e.g. `+02:00`.")
    weekday: str = Field(description="English name of the day.")
    is_dst: bool = Field(description="Whether daylight saving time is in force.")


class Conversion(BaseModel):
    """An amount in another currency."""

    amount: float = Field(description="The amount that was given.")
    source: str = Field(description="Currency that was given.")
    target: str = Field(description="Currency of the result.")
    rate: float = Field(description="Units of the target currency for one unit of the source currency.")
    result: float = Field(description="The amount in the target currency, rounded to its smallest unit.")
    rates: str = Field(description="Where the rates come from.")


class ShippingQuote(BaseModel):
    """What a parcel costs."""

    country: str = Field(description="Destination, ISO 3166-1 alpha-2.")
    weight_kg: float = Field(description="Weight of the parcel in kilograms.")
    zone: Literal["domestic", "europe", "world"] = Field(description="Tariff zone.")
    price_eur: float = Field(description="Price in euros, without customs and taxes.")
    days_min: int = Field(description="Fastest delivery, in working days.")
    days_max: int = Field(description="Slowest delivery, in working days.")


class _Written(BaseModel):
    """Something that was written about a ticket."""

    ticket_id: int = Field(description="Number of the ticket.")
    text: str = Field(description="What was written.")


class Note(_Written):
    """An internal note on a ticket."""

    note_id: str = Field(description="Id of the note.")
    created_at: str = Field(description="When it was written, ISO 8601 in UTC.")


class Notes(BaseModel):
    """The notes on one ticket, oldest first."""

    ticket_id: int = Field(description="Number of the ticket.")
    notes: list[Note] = Field(description="Notes, oldest first; the last 100 at most.")


class Reply(_Written):
    """A reply to a customer that waits in the outbox."""

    message_id: str = Field(description="Id of the message.")
    status: Literal["queued"] = Field(description="The demo has no mail server: replies stay in the outbox.")
    queued_at: str = Field(description="When it was queued, ISO 8601 in UTC.")


@cache
def _timezone_names() -> list[str]:
    return sorted(zoneinfo.available_timezones())


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = difflib.get_close_matches(name, _timezone_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " Use an IANA name such as 'Europe/Berlin' or 'UTC'."
        raise OfficeError(f"Unknown time zone {name!r}.{hint}") from error


def current_time(timezone: str) -> CurrentTime:
    """The time now in `timezone`; raises OfficeError for an unknown one."""
    now = datetime.now(_zone(timezone)).replace(microsecond=0)
    return CurrentTime(
        timezone=timezone,
        datetime=now.isoformat(),
        utc_offset=now.isoformat()[-6:],
        weekday=now.strftime("%A"),
        is_dst=now.dst() not in (None, timedelta()),
    )


def _rate(currency: str) -> float:
    if currency not in RATES:
        raise OfficeError(f"Unknown currency {currency!r}. Known: {', '.join(RATES)}.")
    return RATES[currency]


def convert(amount: float, source: str, target: str) -> Conversion:
    """`amount` in another currency, by the fixed table; raises OfficeError for an unknown currency."""
    source, target = source.upper(), target.upper()
    rate = _rate(target) / _rate(source)
    return Conversion(
        amount=amount,
        source=source,
        target=target,
        rate=round(rate, 6),
        result=round(amount * rate, 0 if target in _WHOLE_UNITS else 2),
        rates=f"Fixed demonstration table of {RATES_AS_OF}; not for real payments.",
    )


def _zone_of(country: str) -> Literal["domestic", "europe", "world"]:
    if country == HOME:
        return "domestic"
    if country in _EUROPE.split():
        return "europe"
    if country in _WORLD.split():
        return "world"
    raise OfficeError(f"We do not ship to {country!r}. Give an ISO 3166-1 alpha-2 code such as 'DE', 'FR' or 'US'.")


def shipping_quote(country: str, weight_kg: float) -> ShippingQuote:
    """Price and duration; raises OfficeError for a country that is not served or a weight out of range."""
    country = country.upper()
    zone = _zone_of(country)
    if not 0 < weight_kg <= HEAVIEST_KG:
        raise OfficeError(f"A parcel weighs more than 0 and at most {HEAVIEST_KG:g} kg, not {weight_kg:g} kg.")
    base, each_kg, fastest, slowest = _ZONES[zone]
    price = round(base + each_kg * weight_kg, 2)
    return ShippingQuote(
        country=country, weight_kg=weight_kg, zone=zone, price_eur=price, days_min=fastest, days_max=slowest
    )


def tariff() -> str:
    """What parcels cost, as Markdown for people and models to read."""
    rows = [
        f"| {zone} | {base:.2f} € | {each_kg:.2f} € | {fastest} to {slowest} |"
        for zone, (base, each_kg, fastest, slowest) in _ZONES.items()
    ]
    head = ("| Zone | Parcel | Each kilogram | Working days |", "| --- | --- | --- | --- |")
    where = f"From our warehouse in Germany (domestic: {HOME}). Europe: {_EUROPE}. World: {_WORLD}."
    return "\n".join(("# Shipping", "", where, "", *head, *rows, "", f"At most {HEAVIEST_KG:g} kg a parcel.", ""))


def answer_prompt(ticket_id: str, tone: str) -> str:
    """What a model is told that is to answer a customer; raises OfficeError for a tone that we do not have."""
    if tone not in TONES:
        raise OfficeError(f"Unknown tone {tone!r}. Known: {', '.join(TONES)}.")
    return (
        f"Draft an answer to the customer of ticket {ticket_id}. Read the ticket and its notes first, and the order"
        f" that it is about. {TONES[tone]} Promise nothing that the order does not show. A person will send it."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Desk:
    """Where notes and replies are kept: two files of JSON lines in `folder`."""

    folder: Path

    @property
    def notes(self) -> Path:
        """Internal notes."""
        return self.folder / "notes.jsonl"

    @property
    def outbox(self) -> Path:
        """Replies that nobody sends."""
        return self.folder / "outbox.jsonl"

    def create_note(self, ticket_id: int, text: str) -> Note:
        """Keep a note."""
        note = Note(note_id=str(uuid.uuid4()), ticket_id=ticket_id, text=text, created_at=_now())
        _append(self.notes, note)
        return note

    def list_notes(self, ticket_id: int) -> Notes:
        """The notes on a ticket."""
        if not self.notes.exists():
            return Notes(ticket_id=ticket_id, notes=[])
        with self.notes.open(encoding="utf-8") as lines:
            found = [note for note in map(Note.model_validate_json, lines) if note.ticket_id == ticket_id]
        return Notes(ticket_id=ticket_id, notes=found[-100:])

    def send_reply(self, ticket_id: int, text: str) -> Reply:
        """Put a reply into the outbox."""
        reply = Reply(message_id=str(uuid.uuid4()), ticket_id=ticket_id, text=text, status="queued", queued_at=_now())
        _append(self.outbox, reply)
        return reply


def _append(path: Path, line: BaseModel) -> None:
    # One write to a file that is opened for appending: lines of several threads do not mix.
    with path.open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json() + "\n")
