"""What is missing among the ids, and when it is given up."""

from __future__ import annotations

from audit.sealing.gaps import Gaps


def test_ids_without_a_hole_move_the_low_water_along() -> None:
    gaps = Gaps(0, [], 0, now=0)
    gaps.reach([1, 2, 3], 3, now=0)
    assert (gaps.low_water, gaps.high, gaps.ranges) == (3, 3, [])


def test_holes_are_ranges_and_the_end_may_be_one() -> None:
    gaps = Gaps(10, [], 10, now=0)
    gaps.reach([12, 13, 17], 20, now=0)
    assert (gaps.low_water, gaps.high, gaps.ranges) == (10, 20, [(11, 11), (14, 16), (18, 20)])


def test_what_comes_late_is_taken_out_wherever_it_is() -> None:
    gaps = Gaps(0, [], 0, now=0)
    gaps.reach([], 9, now=0)
    gaps.fill([5])
    gaps.fill([1, 9])
    assert gaps.ranges == [(2, 4), (6, 8)]
    gaps.fill([2, 3, 4, 6, 7, 8])
    assert (gaps.ranges, gaps.low_water) == ([], 9)


def test_a_hole_is_given_up_after_its_time_when_every_transaction_of_then_has_ended() -> None:
    gaps = Gaps(0, [], 0, now=0)
    gaps.reach([2], 2, now=0)
    gaps.give_up(29, 30, oldest_running=100, next_transaction=100)
    assert gaps.ranges == [(1, 1)]
    gaps.give_up(31, 30, oldest_running=100, next_transaction=105)
    assert gaps.ranges == [(1, 1)]
    gaps.give_up(3600, 30, oldest_running=104, next_transaction=200)
    assert gaps.ranges == [(1, 1)]
    gaps.give_up(3601, 30, oldest_running=105, next_transaction=200)
    assert (gaps.ranges, gaps.low_water) == ([], 2)


def test_a_start_knows_the_holes_of_before_and_waits_anew() -> None:
    gaps = Gaps(4, [6, 8], 8, now=100)
    assert (gaps.low_water, gaps.ranges) == (4, [(5, 5), (7, 7)])
    gaps.give_up(129, 30, oldest_running=9, next_transaction=9)
    assert gaps.ranges == [(5, 5), (7, 7)]
