"""The process tree: order, readiness, replacement, and that nothing is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcpsite.supervisor import Program, StartFailed, StopRequested, Supervisor, dying_with_us

ROOT = Path(__file__).resolve().parents[2]


def make_program(name: str, script: str, order: int = 0, **options) -> Program:
    return Program(name=name, command=("sh", "-c", script), order=order, **options)


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def supervisor():
    # Who starts the tests in the background lets them inherit that SIGINT is ignored, which is honoured.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    supervisor = Supervisor()
    with supervisor.signals():
        yield supervisor
        supervisor.stop()
    signal.signal(signal.SIGINT, before)


def test_a_program_is_ready_when_its_probe_says_so(supervisor, tmp_path):
    flag = tmp_path / "flag"
    supervisor.start(make_program("a", f"touch {flag}; exec sleep 60", ready=flag.exists))
    supervisor.wait_ready("a", seconds=10)
    assert flag.exists()


def test_a_program_that_is_killed_is_replaced_at_once(supervisor):
    supervisor.start(make_program("a", "exec sleep 60"))
    first = supervisor.pid("a")
    os.kill(first, signal.SIGKILL)
    started = time.monotonic()
    supervisor.wait_until(lambda: supervisor.pid("a") not in (first, None), "a new process", 10)
    assert time.monotonic() - started < 0.4


def test_replacing_again_and_again_slows_down(supervisor, tmp_path):
    starts = tmp_path / "starts"
    supervisor.start(make_program("a", f"date +%s%N >> {starts}; [ $(wc -l < {starts}) -gt 2 ] && exec sleep 60"))
    supervisor.wait_until(lambda: starts.exists() and len(starts.read_text().split()) == 3, "three starts", 10)
    first, second, third = (int(line) / 1e9 for line in starts.read_text().split())
    assert second - first < 0.4
    assert third - second > 0.4


def test_a_program_that_never_starts_is_given_up_with_the_end_of_its_log(supervisor, tmp_path):
    log = tmp_path / "a.log"
    supervisor.start(make_program("a", "echo the disk is full; exit 3", log=log, ready=lambda: False))
    with pytest.raises(StartFailed, match=r"(?s)a does not start.*the disk is full"):
        supervisor.wait_ready("a", seconds=20)


def test_a_program_that_is_never_ready_is_given_up_after_its_time(supervisor):
    supervisor.start(make_program("a", "exec sleep 60", ready=lambda: False))
    with pytest.raises(StartFailed, match=r"Waited 0\.2 s in vain for a to be ready"):
        supervisor.wait_ready("a", seconds=0.2)


def test_programs_stop_from_the_highest_order_to_the_lowest(supervisor, tmp_path):
    stopped = tmp_path / "stopped"
    for order, name in enumerate(("postgres", "valkey", "web")):
        on_term = f"sleep 0.1; echo {name} >> {stopped}; exit 0"
        script = f"trap '{on_term}' TERM; touch {tmp_path / name}; while :; do sleep 0.01; done"
        supervisor.start(make_program(name, script, order, ready=(tmp_path / name).exists))
    supervisor.wait_ready("postgres", "valkey", "web", seconds=10)
    supervisor.stop()
    assert stopped.read_text().split() == ["web", "valkey", "postgres"]


def test_a_program_gets_the_signal_that_it_wants(supervisor, tmp_path):
    flag = tmp_path / "flag"
    script = f"trap 'echo INT > {flag}; exit 0' INT; touch {tmp_path / 'up'}; while :; do sleep 0.01; done"
    supervisor.start(make_program("a", script, stop_signal=signal.SIGINT, ready=(tmp_path / "up").exists))
    supervisor.wait_ready("a", seconds=10)
    supervisor.stop()
    assert flag.read_text() == "INT\n"


def test_a_program_that_does_not_stop_is_killed_at_its_deadline(supervisor, tmp_path):
    script = f"trap '' TERM; touch {tmp_path / 'up'}; while :; do sleep 0.01; done"
    supervisor.start(make_program("a", script, stop_seconds=0.3, ready=(tmp_path / "up").exists))
    supervisor.wait_ready("a", seconds=10)
    pid = supervisor.pid("a")
    started = time.monotonic()
    supervisor.stop()
    assert not exists(pid)
    assert 0.3 <= time.monotonic() - started < 2


def test_one_more_signal_hurries_the_stop(supervisor, tmp_path):
    script = f"trap 'kill -INT {os.getpid()}' TERM; touch {tmp_path / 'up'}; while :; do sleep 0.01; done"
    supervisor.start(make_program("a", script, stop_seconds=30, ready=(tmp_path / "up").exists))
    supervisor.wait_ready("a", seconds=10)
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(supervisor, number):
    supervisor.start(make_program("a", f"kill -{number} {os.getpid()}; exec sleep 60"))
    with pytest.raises(StopRequested):
        supervisor.run()


def test_a_signal_breaks_off_work_of_our_own_that_allows_it(supervisor):
    started = time.monotonic()
    with pytest.raises(StopRequested), supervisor.interruptible():
        subprocess.run(["sh", "-c", f"kill -INT {os.getpid()}; exec sleep 60"])
    assert time.monotonic() - started < 10


def test_a_signal_does_not_break_off_what_does_not_allow_it(supervisor):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(StopRequested), supervisor.interruptible():
        pytest.fail("nothing is begun after a request to stop")


def test_it_sleeps_while_there_is_nothing_to_do(supervisor):
    supervisor.start(make_program("a", "exec sleep 60"))
    supervisor.wait_ready("a", seconds=10)
    assert supervisor._due(None) is None


def test_children_end_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    script = (
        "from mcpsite.supervisor import *\n"
        "s = Supervisor()\n"
        f"s.start(Program(name='a', order=0, command=('sh', '-c', 'echo $$ >> {pids}; exec sleep 60')))\n"
        "s.run()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, preexec_fn=dying_with_us())
    wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"))
    child = int(pids.read_text())
    assert exists(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not exists(child))


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
