"""Sums over processes: nothing is lost or counted twice, whoever ends or starts in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.tally import Reading, Samples, Tally
from mcpsite.supervisor import dying_with_us

ROOT = Path(__file__).resolve().parents[2]

# Another process: it publishes what it is told, line by line, and says when that is done.
OTHER = """
import json, sys
from pathlib import Path
from gateway.tally import Reading, Tally
tally = Tally(Path(sys.argv[1]))
tally.open()
for line in sys.stdin:
    number = json.loads(line)
    tally.publish(lambda: Reading({"calls": {("echo",): [number]}}, {"queued": {(): [number]}}))
    print("published", flush=True)
"""


class Other:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=dying_with_us(),
        )  # fmt: skip

    def publish(self, number: int) -> None:
        self.process.stdin.write(f"{json.dumps(number)}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "published\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def reading(**totals: float) -> Reading:
    samples: Samples = {"calls": {(name,): [number] for name, number in totals.items()}}
    return Reading(samples, {"queued": {(): [1.0]}})


def opened(folder: Path, **totals: float) -> Tally:
    tally = Tally(folder)
    tally.open()
    tally.publish(lambda: reading(**totals))
    return tally


def calls(tally: Tally) -> dict[str, float]:
    totals, _ = tally.gather()
    return {labels[0]: numbers[0] for labels, numbers in totals.get("calls", {}).items()}


def test_totals_are_added_and_states_are_given_for_each(tmp_path):
    first, second = opened(tmp_path, echo=2, time=1), opened(tmp_path, echo=3)
    assert calls(first) == {"echo": 5, "time": 1}
    assert calls(second) == {"echo": 5, "time": 1}
    assert first.gather()[1] == [{"queued": {(): [1.0]}}, {"queued": {(): [1.0]}}]


def test_who_only_looks_sees_the_same(tmp_path):
    _held = opened(tmp_path, echo=2)
    assert calls(Tally(tmp_path)) == {"echo": 2}
    assert Tally(tmp_path / "nowhere").gather() == ({}, [])


def test_what_a_killed_process_counted_stays_and_its_states_go(tmp_path):
    mine = opened(tmp_path, echo=1)
    other = Other(tmp_path)
    other.publish(5)
    assert calls(mine) == {"echo": 6}
    assert len(mine.gather()[1]) == 2
    other.kill()
    assert calls(mine) == {"echo": 6}
    assert len(mine.gather()[1]) == 1


def test_sums_never_go_back_over_many_deaths_and_files_do_not_pile_up(tmp_path):
    mine = opened(tmp_path, echo=1)
    for round in range(1, 5):
        other = Other(tmp_path)
        other.publish(10)
        assert calls(mine) == {"echo": 1 + 10 * round}
        other.kill()
        assert calls(mine) == {"echo": 1 + 10 * round}
    # Mine, that of the last one, what was kept of the others, and the guard.
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert len(list(tmp_path.glob("*.lock"))) == 2
    mine.close()
    assert calls(opened(tmp_path)) == {"echo": 41}
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_what_was_folded_but_not_removed_is_not_counted_twice(tmp_path, monkeypatch):
    gone = opened(tmp_path, echo=7)
    gone.close()

    def crash(*args: Any, **options: Any) -> None:
        raise OSError("the machine stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", crash)
        with pytest.raises(OSError, match="stopped here"):
            Tally(tmp_path).open()
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert calls(Tally(tmp_path)) == {"echo": 7}


def test_an_older_reading_never_follows_a_newer_one(tmp_path):
    tally = opened(tmp_path, echo=0)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Reading:
        begun.set()
        go_on.wait(10)
        return reading(echo=1)

    older = threading.Thread(target=tally.publish, args=[slow])
    newer = threading.Thread(target=tally.publish, args=[lambda: reading(echo=2)])
    older.start()
    begun.wait(10)
    newer.start()
    newer.join(0.2)  # it has the time to overtake, if it could
    go_on.set()
    older.join()
    newer.join()
    assert calls(tally) == {"echo": 2}


def test_histograms_are_added_bucket_by_bucket_unless_their_buckets_differ(tmp_path):
    def publish(tally: Tally, numbers: list[float]) -> None:
        tally.publish(lambda: Reading({"seconds": {("office",): numbers}}))

    old, new = Tally(tmp_path), Tally(tmp_path)
    for tally, numbers in ((old, [1.0, 2.0, 30.0]), (new, [1.0, 1.0, 5.0])):
        tally.open()
        publish(tally, numbers)
    assert new.gather()[0]["seconds"] == {("office",): [2.0, 3.0, 35.0]}
    publish(old, [1.0, 30.0])
    assert new.gather()[0]["seconds"][("office",)] in ([1.0, 30.0], [1.0, 1.0, 5.0])


def test_a_torn_file_counts_as_nothing(tmp_path):
    tally = opened(tmp_path, echo=3)
    (tmp_path / "torn.json").write_text('{"totals": {"calls": [[["echo"')
    assert calls(tally) == {"echo": 3}


def test_the_files_are_private(tmp_path):
    opened(tmp_path / "metrics", echo=1)
    assert (tmp_path / "metrics").stat().st_mode & 0o777 == 0o700
