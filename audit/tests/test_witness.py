"""The witness as it runs: a process of its own, against a log that is honest, restored, forked or hostile."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import verify
from audit.tests.logs import TOKEN, Log, Server, serving
from audit.witness import Signer, State, Unusable

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30


class Place:
    """A witness's directory, and its command line; the program is copied, as to another machine."""

    def __init__(self, folder: Path, server: Server, url: str) -> None:
        self.server, self.url, self.folder = server, url, folder
        self.state_dir = folder / "state"
        self.token = folder / "token"
        self.token.write_text(TOKEN + "\n")
        for name in ("witness.py", "verify.py"):
            shutil.copy(ROOT / "audit" / name, folder / name)

    def words(self, command: str, *more: str) -> list[str]:
        words = [sys.executable, str(self.folder / "witness.py"), command, "--state", str(self.state_dir)]
        if command in ("run", "accept"):
            words += ["--url", self.url, "--token-file", str(self.token)]
        if command in ("run", "key"):
            words += ["--name", "witness.example.com/w1"]
        return [*words, *more]

    def do(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.defpath}
        return subprocess.run(
            self.words(command, *more),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def check(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.do("run", "--once", *more)

    @property
    def state(self) -> State:
        return State.parse((self.state_dir / "state.json").read_text())

    @property
    def kept(self) -> verify.Head:
        return verify.parse_head(verify.parse_note(self.state.head).text)

    @property
    def vkey(self) -> str:
        return self.do("key").stdout.strip()

    def evidence(self) -> dict[str, str]:
        (found,) = self.state_dir.glob("evidence-*.json")
        return json.loads(found.read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving(Log()) as (server, url):
        yield Place(tmp_path, server, url)


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


# --- An honest log ----------------------------------------------------------------------------------------------------


def test_it_signs_the_first_head_and_what_continues_it(place):
    place.server.log.add("a")
    assert place.check().returncode == 0
    place.server.log.add("b", "c")
    place.server.log.add("d")
    done = place.check()
    assert (done.returncode, place.kept.number, place.kept.size) == (0, 3, 4), said(done)
    note = verify.parse_note(place.state.head)
    assert verify.check_note(note, [*place.server.log.vkeys, place.vkey]) == [*place.server.log.vkeys, place.vkey]
    assert sorted(place.server.cosigned) == [1, 3]
    assert verify.parse_signature(place.server.cosigned[3][0]) in note.signatures


def test_a_head_is_handed_in_once_and_again_after_a_refusal(place):
    place.server.misbehave = lambda handler: handler.command == "POST" and not handler.send_error(503)
    assert said(place.check()) == "The log answers 503.\n"
    assert place.kept.number == 0, "it is kept before it is signed"
    place.server.misbehave = lambda handler: False
    assert [place.check().returncode for _ in range(3)] == [0, 0, 0]
    assert [len(lines) for lines in place.server.cosigned.values()] == [1]


def test_every_size_of_tree_continues_every_smaller_one(place):
    log = place.server.log
    for number in range(40):
        log.add(*(f"{number} {each}" for each in range(number % 5)))
        if number % 3 == 0:
            assert place.check().returncode == 0
    assert place.kept.size == log.heads[-1][0].size or place.check().returncode == 0


def test_it_follows_a_change_of_the_key(place):
    log = place.server.log
    assert place.check().returncode == 0
    old = place.state.key
    log.add("a")
    log.rotate()
    log.add("b")
    log.rotate()
    log.add("c")
    assert said(place.check()).startswith("signed head 5 of")
    assert place.state.key == log.vkeys[-1]
    assert place.state.former == [old, log.vkeys[1]]


def test_a_head_by_a_key_that_nobody_introduced_is_not_signed(place):
    place.check()
    place.server.log.leaves.append(b"x" * 32)
    place.server.log.seal(by=Ed25519PrivateKey.generate())
    done = place.check()
    assert done.returncode == 1
    assert "Head 1 is not signed by" in said(done)
    assert place.kept.number == 0


def test_the_key_of_the_log_can_be_named_beforehand(place):
    other = Log().vkeys[0]
    done = place.check("--log-key", other)
    assert (done.returncode, said(done)) == (1, f"The newest head is not signed by {other}.\n")
    assert place.check("--log-key", place.server.log.vkeys[0]).returncode == 0
    assert said(place.check("--log-key", other)).startswith("This witness follows the log")


# --- A log that lies --------------------------------------------------------------------------------------------------


def grown() -> Log:
    log = Log()
    log.add("a", "b", "c")
    log.add("d")
    return log


def test_a_restored_backup_turns_it_red_until_a_break_is_accepted(place):
    log = place.server.log
    log.add("a")
    backup = log.copy()
    log.add("b")
    place.check()
    kept = place.kept
    place.server.log = backup
    done = place.check()
    assert (done.returncode, said(done)) == (3, "red: The log ends at head 1; it had signed head 2.\n")
    assert place.server.contradictions[0]["code"] == "head_behind"
    posted = verify.parse_note(place.server.contradictions[0]["note"])
    assert verify.check_note(posted, [place.vkey, *log.vkeys]) == [*log.vkeys, place.vkey]
    assert posted.text == kept.text
    assert place.evidence()["seen"] == backup.heads[-1][1]
    assert verify.parse_note(place.evidence()["kept"]).text == kept.text
    assert place.do("status").returncode == 3

    backup.at = log.at
    backup.add("other", "records", "than", "before")
    assert place.check().returncode == 3, "that the log grows makes nothing good"
    refused = place.do("accept", "--head", str(len(backup.heads) - 1))
    assert (refused.returncode, "no `break` line" in said(refused)) == (1, True)
    broken = backup.break_off("The disk died; the backup of noon was restored.")
    backup.add("on")
    assert said(place.do("accept", "--head", str(broken.number))).startswith("Accepted: head 3, 'The disk died;")
    assert said(place.check()).startswith("signed head 4")
    assert (place.state.red, place.do("status").returncode) == ({}, 0)
    assert sorted(place.server.cosigned) == [2, 4]


def test_a_break_is_no_excuse_before_or_without_need(place):
    log = place.server.log
    early = log.break_off("long ago")
    log.add("a")
    place.check()
    assert "nothing to accept" in said(place.do("accept", "--head", str(early.number)))
    backup = log.copy()
    log.add("b")
    place.check()
    place.server.log = backup
    place.check()
    assert "from before head 3" in said(place.do("accept", "--head", str(early.number)))
    stranger = backup.copy()
    stranger.at = log.at
    stranger.keys = [Ed25519PrivateKey.generate()]
    forged = stranger.break_off("trust me")
    file = place.folder / "head"
    file.write_text(stranger.heads[-1][1])
    assert f"Head {forged.number} is refused" in said(place.do("accept", "--head", str(file))) or (
        "not signed by" in said(place.do("accept", "--head", str(file)))
    )
    assert place.check().returncode == 3


def test_a_backup_from_before_a_change_of_the_key_is_seen_too(place):
    log = place.server.log
    log.add("a")
    backup = log.copy()
    log.rotate()
    log.add("b")
    place.check()
    place.server.log = backup
    assert "The log ends at head 1" in said(place.check())
    backup.at = log.at
    broken = backup.break_off("restored")
    backup.add("c")
    assert place.do("accept", "--head", str(broken.number)).returncode == 0
    assert said(place.check()).startswith("signed head 3")


def test_two_heads_of_one_number_are_caught(place):
    log = place.server.log
    log.add("a")
    twin = log.copy()
    log.add("b")
    place.check()
    twin.add("another b")
    place.server.log = twin
    assert said(place.check()) == "red: The log signed two different heads with the number 2.\n"
    assert place.evidence()["seen"] == twin.heads[2][1]


def test_a_fork_is_caught_when_it_has_grown_beyond_what_is_kept(place):
    log = place.server.log
    log.add("a")
    twin = log.copy()
    log.add("b")
    place.check()
    twin.add("another b")
    twin.add("c")
    place.server.log = twin
    assert said(place.check()) == "red: The log signed two different heads with the number 2.\n"


def test_other_records_under_the_same_heads_are_caught(place):
    log = place.server.log
    log.add("a", "b")
    place.check()
    log.leaves[0] = b"\1" * 32
    log.add("c")
    assert said(place.check()).startswith("red: The 2 records of head 1 are not the first ones of head 2.")
    assert place.evidence()["code"] == "head_inconsistent"


def test_an_old_head_from_a_cache_is_looked_at_twice(place):
    log = place.server.log
    old = log.copy()
    log.add("a")
    place.check()
    answers = iter([old, log, log, log])
    original = place.server.misbehave

    def exchange(handler):
        place.server.log = next(answers, log)
        return original(handler)

    place.server.misbehave = exchange
    assert place.check().returncode == 0


def test_a_witness_says_red_until_it_is_heard(place):
    log = place.server.log
    backup = log.copy()
    log.add("a")
    place.check()
    place.server.log = backup
    place.server.misbehave = lambda handler: handler.command == "POST" and not handler.send_error(503)
    assert place.check().returncode == 3
    place.server.misbehave = lambda handler: False
    assert place.check().returncode == 3
    assert len(place.server.contradictions) == 1


# --- A hostile server -------------------------------------------------------------------------------------------------


def huge(handler):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 1_000_000)
    return True


def redirect(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def body(content: bytes):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return True

    return answer


HOSTILE = {
    "huge": (huge, "answered with more than 262144 bytes"),
    "redirect": (redirect, "sends on to 'http://127.0.0.1:9/'"),
    "no JSON": (body(b"<html>"), "The answer is not JSON"),
    "deep JSON": (body(b"[" * 200_000), "The answer is not JSON"),
    "a list": (body(b"[]"), "The answer is not an object"),
    "no note": (body(b"{}"), "The answer has no 'note'"),
    "a number": (body(b'{"note": 7}'), "The answer has no 'note'"),
    "no head": (body(b'{"note": "x\\n\\n\\u2014 a b\\n"}'), "This is not a signed head"),
    "bad bytes": (body(b'{"note": "\xff"}'), "The answer is not JSON"),
    "nothing": (lambda handler: handler.wfile.flush() or True, "did not answer"),
    "401": (lambda handler: not handler.send_error(401), "The log answers 401"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_server_gets_nothing_but_a_sentence(place, how):
    place.check()
    before = place.state.head
    answer, sentence = HOSTILE[how]

    def misbehave(handler):
        handler.close_connection = True
        return answer(handler)

    place.server.misbehave = misbehave
    done = place.check()
    assert done.returncode == 1
    assert sentence in said(done)
    assert len(said(done)) < 1000
    assert place.state.head == before
    assert sentence in place.state.problem
    place.server.misbehave = lambda handler: False
    place.server.log.add("a")
    assert place.check().returncode == 0


def test_a_slow_server_is_cut_off_and_memory_stays_bounded(place, monkeypatch):
    from audit import witness

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not place.server.stopping.wait(0.05):
            handler.wfile.write(b"X: y\r\n")
        return True

    place.server.misbehave = drip
    begun = time.monotonic()
    with pytest.raises(Unusable, match="did not answer"):
        witness.request("GET", place.url + "/", headers={}, seconds=0.5)
    assert time.monotonic() - begun < 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place.server.misbehave = huge
    with pytest.raises(Unusable, match="more than"):
        witness.request("GET", place.url + "/", headers={})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_another_log_at_the_address_is_named(place):
    place.check()
    place.server.log = Log("other.example.com/ledger/1")
    done = place.check()
    assert (done.returncode, "This is the log other.example.com/ledger/1" in said(done)) == (1, True)
    assert place.kept.number == 0


def test_nobody_there(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "did not answer" in said(place.check())
    place.url = "ftp://mcp.example.com"
    assert "is not an address that begins with https://" in said(place.check())


# --- What it keeps ----------------------------------------------------------------------------------------------------


def test_a_witness_that_is_killed_at_any_moment_keeps_a_whole_state(place):
    """Each time it must go on from a head that it kept, and never sign two heads of one number."""
    log, chance = place.server.log, random.Random(7)
    last = -1
    for _ in range(25):
        process = subprocess.Popen(
            place.words("run", "--interval", "0.001"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seen, end = place.server.requests, time.monotonic() + SECONDS
        while place.server.requests < seen + 3:
            assert time.monotonic() < end
            log.add("more")
        for _ in range(chance.randrange(40)):
            log.add("more")
            time.sleep(0.001)
        process.kill()
        process.wait()
        if (place.state_dir / "state.json").exists():
            assert place.kept.number >= last
            last = place.kept.number
    done = place.check()
    assert (done.returncode, place.state.red) == (0, {}), said(done)
    assert place.kept.number == len(log.heads) - 1
    texts = {number: log.heads[number][0].text for number in place.server.cosigned}
    key = verify.parse_vkey(place.vkey)
    for number, lines in place.server.cosigned.items():
        assert all(key.signed(texts[number], verify.parse_signature(line).blob) for line in lines)


def test_two_witnesses_do_not_share_a_directory(place):
    process = subprocess.Popen(place.words("run"), stdout=subprocess.PIPE)
    try:
        assert json.loads(process.stdout.readline())["level"] == "info"
        assert said(place.check()).startswith("Another witness uses")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        process.stdout.close()


def test_two_witnesses_of_one_log_agree(place, tmp_path):
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other = Place(other_folder, place.server, place.url)
    for text in "abc":
        place.server.log.add(text)
        assert [each.check().returncode for each in (place, other)] == [0, 0]
    assert place.kept == other.kept
    assert place.vkey != other.vkey
    assert [len(lines) for lines in place.server.cosigned.values()] == [2, 2, 2]


def test_a_damaged_state_is_not_taken_for_none(place):
    place.check()
    (place.state_dir / "state.json").write_text("{")
    assert "Restore it from a copy" in said(place.check())
    assert (place.state_dir / "state.json").read_text() == "{"


def test_a_running_witness_takes_over_what_an_operator_accepts(place):
    log = place.server.log
    backup = log.copy()
    log.add("a")
    place.check()
    place.server.log = backup
    with subprocess.Popen(place.words("run", "--interval", "0.05"), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "red: The log ends at head 0" in json.loads(process.stdout.readline())["message"]
            backup.at = log.at
            broken = backup.break_off("restored")
            assert place.do("accept", "--head", str(broken.number)).returncode == 0
            assert json.loads(process.stdout.readline())["level"] == "info"
        finally:
            process.terminate()
    assert place.kept.number == broken.number


def test_the_key_is_private_and_names_cannot_break_a_note(place):
    assert place.vkey.startswith("witness.example.com/w1+")
    assert (place.state_dir / "key").stat().st_mode & 0o077 == 0
    assert Signer.parse((place.state_dir / "key").read_text()).public == verify.parse_vkey(place.vkey)
    for name in ("", "a b", "a+b", "a\nb", "x" * 201):
        with pytest.raises(Unusable, match="cannot be the name"):
            Signer.new(name)
    for wrong in ("", "PRIVATE+KEY+a+00000000+AAAA", "a+b+c"):
        with pytest.raises(Unusable, match="does not hold the key"):
            Signer.parse(wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_runs_it_as_another_user_who_owns_what_it_keeps(place):
    process = subprocess.Popen(place.words("run", "--user", "daemon"), stdout=subprocess.PIPE)
    try:
        assert json.loads(process.stdout.readline())["level"] == "info"
        identity = Path(f"/proc/{process.pid}/status").read_text()
        assert "\nUid:\t1\t1\t1\t1\n" in identity
        assert "\nGroups:\t\n" in identity.replace("Groups:\t \n", "Groups:\t\n")
    finally:
        process.terminate()
        process.wait(SECONDS)
        process.stdout.close()
    assert {each.stat().st_uid for each in (place.state_dir, *place.state_dir.iterdir())} == {1}
    backup = place.server.log.copy()
    assert place.do("status").returncode == 0, "an operator who is root can read it"
    assert backup
