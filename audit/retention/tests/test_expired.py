"""What may leave the ledger: past the time of every class that covers it, sealed, and not held."""

from __future__ import annotations

import pytest
from django.db import connection

from audit.export.tests.sealer import TestSealer
from audit.models import LegalHold, Record, RetentionClass
from audit.retention import gaps
from audit.retention.tests.past import fresh_month, write

pytestmark = pytest.mark.usefixtures("committed_db")


def make_hold(**values) -> LegalHold:
    return LegalHold.objects.create(**{"name": "h", "matter": "m", "scope": "everything", "reason": "r", **values})


def leaving(month) -> list[str]:
    """The codes of the records that may leave."""
    found = gaps.select(month)
    if found is None:
        return []
    numbers = [found.first_seq + n for n in range(len(found.bits) * 8) if found.bits[n >> 3] >> (n & 7) & 1]
    assert len(numbers) == found.records
    assert (numbers[0], numbers[-1]) == (found.first_seq, found.last_seq)
    with connection.cursor() as cursor:
        cursor.execute("SELECT record_id FROM audit_leaf WHERE seq = ANY (%s)", [numbers])
        ids = [row[0] for row in cursor.fetchall()]
    return sorted(Record.objects.filter(pk__in=ids).values_list("code", flat=True))


def test_records_leave_after_the_standard_class_and_security_stays():
    month = fresh_month(30)
    write(month, [{"code": "a"}, {"kind": "config", "code": "b"}, {"kind": "auth", "code": "c"}, {"code": "d"}])
    TestSealer().seal()
    assert leaving(month) == ["a", "d"]
    assert gaps.select(month).kept == 2


def test_nothing_leaves_before_its_time_counted_from_the_end_of_the_month():
    early, late = fresh_month(24), fresh_month(25)
    for month in (early, late):
        write(month, [{"code": "a"}])
    TestSealer().seal()
    assert leaving(early) == []
    assert leaving(late) == ["a"]


def test_the_longest_class_that_covers_a_record_decides():
    month = fresh_month(30)
    write(month, [{"code": "a", "tool": "pay"}, {"code": "b", "tool": "pay", "connector": "bank"}, {"code": "c"}])
    TestSealer().seal()
    made = [
        RetentionClass.objects.create(name="short", months=3, tools=["pay"]),
        RetentionClass.objects.create(name="long", months=120, tools=["pay"], sources=["bank"]),
    ]
    try:
        assert leaving(month) == ["a", "c"]
    finally:
        for each in made:
            each.delete()


def test_a_shorter_class_lets_its_records_go_before_the_rest():
    month = fresh_month(5)
    write(month, [{"code": "a", "tool": "noise"}, {"code": "b"}])
    TestSealer().seal()
    short = RetentionClass.objects.create(name="short", months=3, tools=["noise"])
    try:
        assert leaving(month) == ["a"]
    finally:
        short.delete()


def test_without_a_standard_class_nothing_leaves():
    month = fresh_month(30)
    write(month, [{"code": "a"}])
    TestSealer().seal()
    standard = RetentionClass.objects.get(name="standard")
    standard.delete()
    try:
        assert leaving(month) == []
    finally:
        RetentionClass(name="standard", months=standard.months, description=standard.description).save()


@pytest.mark.parametrize(
    ("hold", "stays"),
    [
        ({"scope": "everything"}, "abcd"),
        ({"scope": "principal", "value": "ada"}, "ab"),
        ({"scope": "tool", "value": "pay"}, "bc"),
        ({"scope": "source", "value": "bank"}, "c"),
        ({"scope": "period"}, "cd"),
        ({"scope": "principal", "value": "nobody"}, ""),
    ],
)
def test_what_is_held_stays_until_the_hold_is_released(hold, stays):
    month = fresh_month(30)
    write(
        month,
        [
            {"code": "a", "actor": "ada"},
            {"code": "b", "actor": "bot", "on_behalf_of": "ada", "tool": "pay"},
            {"code": "c", "actor": "bob", "tool": "pay", "connector": "bank"},
            {"code": "d"},
        ],
    )
    TestSealer().seal()
    if hold["scope"] == "period":
        hold["since"] = Record.objects.get(code="c", at__year=month.year, at__month=month.month).at
    made = make_hold(**hold)
    assert leaving(month) == sorted(set("abcd") - set(stays))
    made.released_at = made.placed_at
    made.save()
    assert leaving(month) == list("abcd")


def test_what_is_not_sealed_is_counted_and_does_not_leave():
    month = fresh_month(30)
    write(month, [{"code": "a"}])
    TestSealer().seal()
    write(month, [{"code": "b"}])
    assert leaving(month) == ["a"]
    assert gaps.count(month).unsealed == 1
