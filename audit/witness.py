"""The witness: keeps the newest head outside of the database's reach, and signs only what continues it.

Stands alone: this file and `verify.py` beside it need Python and `cryptography`, and nothing of the rest. It belongs on
another machine, or at least to another user of the system, so that nobody who can change the database can also change
what the witness remembers. docs/auditor.md says what it proves, docs/evidence.md what it sends and keeps.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import pwd
import re
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if TYPE_CHECKING or __package__:
    from audit import verify
else:  # started as a file: the two of them beside each other
    import verify

KEY_FILE, STATE_FILE, ACCEPTED = "key", "state.json", "accepted"
STATE_FORMAT = "mcpsite-witness/1"
TOKEN_VARIABLE = "LEDGER_WITNESS_TOKEN"  # noqa: S105 - the name of a variable
OK, FAILED, RED = 0, 1, 3

ANSWER_SECONDS = 20.0
_LONGEST_ANSWER = 256 * 1024
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_PATH = 128
_SECOND_LOOK_SECONDS = 1.0
# Heads that are followed one by one to find where the log changed its key.
_MOST_HEADS = 2_000
_PRIVATE = "PRIVATE+KEY+"
_NAME = re.compile(r"[A-Za-z0-9._/:-]{1,200}")
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2


class Unusable(Exception):
    """The server's answer, a file or an option is not what it must be; the text is a sentence for people.

    Nothing is proven by it: the witness signs nothing, and asks again.
    """


class Contradiction(Exception):
    """The log signed something that does not continue the head that is kept; `seen` is that, as a signed note."""

    def __init__(self, code: str, sentence: str, seen: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence, self.seen = code, sentence, seen


# --- HTTP -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; the body is at most as long as was asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object; raises Unusable."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"The answer is not JSON: {self.body[:80]!r}.") from error
        if not isinstance(found, dict):
            raise Unusable(f"The answer is not an object: {self.body[:80]!r}.")
        return found


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    seconds: float = ANSWER_SECONDS,
    longest: int = _LONGEST_ANSWER,
) -> Answer:
    """One request, without redirects; all of it takes at most `seconds`. Raises Unusable.

    The server may be hostile: a watchdog cuts the connection at the end of the time, however slowly it sends.
    """
    parts = urlsplit(url)
    try:
        with _connected(parts, seconds) as connection:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target or "/", body, dict(headers))
            response = connection.getresponse()
            content = response.read(longest + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unusable(f"{parts.netloc} did not answer: {str(error) or type(error).__name__}.") from error
    if len(content) > longest:
        raise Unusable(f"{parts.netloc} answered with more than {longest} bytes.")
    if 300 <= response.status < 400:
        raise Unusable(f"{parts.netloc} sends on to {response.headers.get('Location', '')[:200]!r}: name the address.")
    return Answer(response.status, dict(response.headers), content)


@contextlib.contextmanager
def _connected(parts: SplitResult, seconds: float) -> Iterator[http.client.HTTPConnection]:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unusable(f"{parts.geturl()[:200]!r} is not an address that begins with https:// or http://.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(parts.hostname, port)
    end = time.monotonic() + seconds
    plain = socket.create_connection((parts.hostname, port), timeout=seconds)
    handle = plain.dup()  # what is done to it is done to the connection, also once that is TLS
    late = threading.Event()
    watchdog = threading.Timer(end - time.monotonic(), _cut, (handle, late))
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.sock = _secured(plain, parts.hostname) if parts.scheme == "https" else plain
        yield connection
        if late.is_set():  # what was read until then can look like the whole
            raise TimeoutError(f"it took longer than {seconds:g} s")
    finally:
        watchdog.cancel()
        watchdog.join()
        handle.close()
        plain.close()
        connection.close()


def _secured(plain: socket.socket, hostname: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=hostname)


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # it was closed at this very moment
        sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Served:
    """A head as the log sent it: the signed note, and what it says."""

    note: verify.Note
    head: verify.Head


class Log:
    """The log's REST interface, for who holds a token. Everything here raises Unusable."""

    def __init__(self, url: str, token: str, host: str | None = None) -> None:
        self._base = url.rstrip("/") + "/api/v1/audit"
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if host:
            self._headers["Host"] = host

    def newest(self) -> Served:
        """The newest head."""
        return _served(self._get("/heads/newest/"), "note")

    def all_keys(self) -> list[str]:
        """The keys that the log calls its own, the oldest first."""
        keys = self._get("/keys/").get("keys")
        return [each for each in keys if isinstance(each, str)] if isinstance(keys, list) else []

    def head(self, number: int) -> Served:
        """The head of that number."""
        return _served(self._get(f"/heads/{number}/"), "note")

    def consistency(self, first: int, second: int) -> tuple[Served, Served, list[bytes]]:
        """Both heads as the log has them now, and the path that shows that the second continues the first."""
        found = self._get(f"/consistency/?from={first}&to={second}")
        path = found.get("path")
        if not isinstance(path, list) or len(path) > _LONGEST_PATH:
            raise Unusable("The proof has no path.")
        try:
            steps = [base64.b64decode(each, validate=True) for each in path]
        except (ValueError, TypeError) as error:
            raise Unusable("The path of the proof is not base64.") from error
        return _served(found, "from"), _served(found, "to"), steps

    def cosign(self, number: int, line: str) -> None:
        """Hand in a cosignature."""
        self._post(f"/heads/{number}/cosignatures/", {"line": line})

    def contradict(self, code: str, kept: str) -> None:
        """Say that the log signed this head, and does not stand by it any more."""
        self._post("/contradictions/", {"code": code, "note": kept})

    def _get(self, path: str) -> dict[str, Any]:
        return _expected(request("GET", self._base + path, headers=self._headers))

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        headers = {**self._headers, "Content-Type": "application/json"}
        return _expected(request("POST", self._base + path, headers=headers, body=json.dumps(content).encode()))


def _served(found: Mapping[str, Any], name: str) -> Served:
    text = found.get(name)
    if not isinstance(text, str):
        raise Unusable(f"The answer has no {name!r}.")
    return served(text)


def served(text: str) -> Served:
    """The head of a signed note, whoever signed it; raises Unusable."""
    try:
        note = verify.parse_note(text)
        return Served(note, verify.parse_head(note.text))
    except verify.NoteError as error:
        raise Unusable(f"This is not a signed head: {error}.") from error


def _expected(answer: Answer) -> dict[str, Any]:
    if answer.status in (200, 201):
        return answer.json()
    detail = ""
    with contextlib.suppress(Unusable):
        detail = str(answer.json().get("detail", ""))[:300]
    raise Unusable(f"The log answers {answer.status}. {detail}".strip())


# --- Key --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signer:
    """The witness's own key, with its name."""

    name: str
    private: Ed25519PrivateKey

    @classmethod
    def parse(cls, text: str) -> Signer:
        """`PRIVATE+KEY+<name>+<key id>+<base64(0x04 || seed)>`; raises Unusable, which never tells the key."""
        name, _, rest = text.strip().removeprefix(_PRIVATE).partition("+")
        try:
            data = base64.b64decode(rest.partition("+")[2], validate=True)
            if not text.startswith(_PRIVATE) or data[:1] != b"\x04":
                raise ValueError("of another kind")
            return cls(name, Ed25519PrivateKey.from_private_bytes(data[1:]))
        except ValueError as error:
            raise Unusable("The key file does not hold the key of a witness.") from error

    @classmethod
    def new(cls, name: str) -> Signer:
        """A new key; raises Unusable for a name that cannot stand in a note."""
        if not _NAME.fullmatch(name):
            raise Unusable(f"{name[:80]!r} cannot be the name of a witness: use letters, digits and . _ / : -")
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def public(self) -> verify.Key:
        """What signatures are checked with."""
        return verify.Key(self.name, verify.COSIGNATURE, self.private.public_key().public_bytes_raw())

    @property
    def text(self) -> str:
        """The form that `parse` reads."""
        seed = base64.b64encode(b"\x04" + self.private.private_bytes_raw()).decode()
        return f"{_PRIVATE}{self.name}+{self.public.id.hex()}+{seed}\n"

    def cosign(self, text: str, at: int) -> verify.Signature:
        """The signature line over the text of a head (C2SP tlog-cosignature, v1), at so many seconds since 1970."""
        signed = self.private.sign(b"cosignature/v1\ntime %d\n" % at + text.encode())
        return verify.Signature(self.name, self.public.id, at.to_bytes(8) + signed)


# --- State ------------------------------------------------------------------------------------------------------------


class Folder:
    """A directory by its descriptor, so that it can still be used when its parents cannot be entered any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise Unusable(f"The directory {path} cannot be used: {error.strerror}.") from error

    def read(self, name: str) -> str | None:
        """The file's content; None where there is no such file."""
        try:
            descriptor = os.open(name, os.O_RDONLY, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"{self.path / name} cannot be read: {error.strerror}.") from error
        with os.fdopen(descriptor, encoding="utf-8") as file:
            return file.read()

    def write(self, name: str, content: str, mode: int = 0o600) -> None:
        """Replace the file in one step, and return when it is on disk: after a crash it is the old or the new one."""
        try:
            self._write(name, content, mode)
        except OSError as error:
            raise Unusable(f"{self.path / name} cannot be written: {error.strerror}.") from error

    def _write(self, name: str, content: str, mode: int) -> None:
        fresh = f".{name}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=self._fd)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            if os.geteuid() == 0:  # an operator's command must leave what the witness can read
                owner = os.stat(self._fd)
                os.chown(descriptor, owner.st_uid, owner.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def lock(self) -> None:
        """Keep other witnesses out until this process ends; raises Unusable."""
        descriptor = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unusable(f"Another witness uses {self.path}. Stop it first, or name another directory.") from error

    def own(self, user: int, group: int) -> None:
        """Give the directory and what is in it to that user."""
        for name in os.listdir(self._fd):
            os.chown(name, user, group, dir_fd=self._fd, follow_symlinks=False)
        os.chown(self._fd, user, group)
        os.fchmod(self._fd, 0o700)

    def remove(self, name: str) -> None:
        """Remove the file; raises Unusable."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except OSError as error:
            raise Unusable(f"{self.path / name} cannot be removed: {error.strerror}.") from error


@dataclass(slots=True)
class State:
    """What the witness remembers: the log's key and those before it, the newest head that it signed, what is wrong."""

    key: str = ""
    former: list[str] = field(default_factory=list)
    head: str = ""
    handed_in: bool = False
    red: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    checked_at: str = ""

    @classmethod
    def parse(cls, text: str | None) -> State:
        """Raises Unusable for a file that is none of ours: a witness must not forget unnoticed."""
        if text is None:
            return cls()
        try:
            found = json.loads(text)
            if found.pop("format") != STATE_FORMAT:
                raise ValueError("it has another format")
            return cls(**found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unusable(f"{STATE_FILE} is damaged ({error}). Restore it from a copy; do not delete it.") from error

    @property
    def text(self) -> str:
        """The form that `parse` reads."""
        return json.dumps({"format": STATE_FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


# --- The witness ------------------------------------------------------------------------------------------------------


class Witness:
    """Holds one log to what it signed before. Without `key` the log's first answer says which key is its own."""

    def __init__(self, folder: Folder, signer: Signer, log: Log, key: str = "") -> None:
        self._folder, self._signer, self._log = folder, signer, log
        self.state = State.parse(folder.read(STATE_FILE))
        if key and self.state.key and key not in (self.state.key, *self.state.former):
            raise Unusable(f"This witness follows the log {self.state.key}, not {key}.")
        self._named = key

    def check(self) -> str:
        """Look at the log once; returns what to say of it. Raises Unusable when it gave nothing to judge by."""
        try:
            said = self._check()
        except Contradiction as found:
            said = self._turn_red(found)
        except Unusable as error:
            self.state.problem = str(error)
            self._save()
            raise
        self.state.problem, self.state.checked_at = "", _now()
        self._save()
        return said

    def _check(self) -> str:
        if self.state.red and not self._accept():
            self._complain()
            return f"red: {self.state.red['sentence']}"
        newest = self._log.newest()
        if not self.state.head:
            return self._begin(newest)
        kept = served(self.state.head).head
        if newest.head.origin != kept.origin:
            raise Unusable(f"This is the log {newest.head.origin[:200]}, and {kept.origin} is witnessed here.")
        if self._is_behind(newest, kept):
            time.sleep(_SECOND_LOOK_SECONDS)  # a cache on the way may have answered
            newest = self._log.newest()
        return self._follow(newest, kept)

    # --- What may be signed ---

    def _begin(self, newest: Served) -> str:
        """Nothing can be compared yet: from here on the log is held to this head, and to its key."""
        keys = [self._named] if self._named else self._log.all_keys()
        signed = [place for place, key in enumerate(keys) if signs(newest, key)]
        if not signed:
            raise Unusable(f"The newest head is not signed by {self._named or 'any of the keys that the log names'}.")
        self.state.key, self.state.former = keys[signed[-1]], keys[: signed[-1]]
        self._keep(newest)
        return self._hand_in(f"begins with head {newest.head.number} of {newest.head.origin}")

    def _follow(self, newest: Served, kept: verify.Head) -> str:
        head = newest.head
        if self._is_behind(newest, kept):
            raise Contradiction(
                "head_behind",
                f"The log ends at head {head.number}; it had signed head {kept.number}.",
                str(newest.note),
            )
        if head.number == kept.number:
            if head.text != kept.text:
                raise _forked(newest, f"The log signed two different heads with the number {head.number}.")
            return self._hand_in(f"stands by head {kept.number}")
        if not signs(newest, self.state.key):
            kept = self._learn_keys(kept, newest)
        self._continues(kept, newest)
        self._keep(newest)
        return self._hand_in(f"signed head {head.number} of {head.origin}")

    def _is_behind(self, newest: Served, kept: verify.Head) -> bool:
        """Whether the log itself, by any of its keys, signed what is older than what is kept."""
        if newest.head.number >= kept.number and newest.head.size >= kept.size:
            return False
        self._must_be_the_logs(newest)
        return True

    def _must_be_the_logs(self, found: Served) -> None:
        if not any(signs(found, key) for key in (self.state.key, *self.state.former)):
            raise Unusable(f"Head {found.head.number} is not signed by the log's key: nobody needs to believe it.")

    def _continues(self, kept: verify.Head, newest: Served) -> None:
        """Raise Contradiction unless the log still has the kept head, and shows that the newest one continues it."""
        first, second, path = self._log.consistency(kept.number, newest.head.number)
        for sent, wanted in ((first, kept), (second, newest.head)):
            if sent.head.text != wanted.text:
                self._must_be_the_logs(sent)
                raise _forked(sent, f"The log signed two different heads with the number {wanted.number}.")
        if newest.head.number == kept.number + 1 and newest.head.previous != kept.hash:
            raise _forked(newest, f"Head {newest.head.number} does not follow on head {kept.number}.")
        if not verify.consistent(kept.size, newest.head.size, kept.root, newest.head.root, path):
            raise Contradiction(
                "head_inconsistent",
                f"The {kept.size} records of head {kept.number} are not the first ones of head {newest.head.number}.",
                str(newest.note),
            )

    def _learn_keys(self, kept: verify.Head, newest: Served) -> verify.Head:
        """Follow the heads one by one to where the log changed its key; returns the last one that is kept then."""
        last = None
        for number in range(kept.number + 1, min(newest.head.number, kept.number + 1 + _MOST_HEADS)):
            last = self._next(last.head if last else kept, number)
            if last.head.successor:
                break
        if last is not None:
            self._continues(kept, last)
            self._keep(last)
            if signs(newest, self.state.key):
                return last.head
            if last.head.successor:
                return self._learn_keys(last.head, newest)
        raise Unusable(f"Head {newest.head.number} is not signed by {self.state.key}, which nothing replaced so far.")

    def _next(self, last: verify.Head, number: int) -> Served:
        found = self._log.head(number)
        self._must_be_the_logs(found)
        if found.head.number != number or found.head.previous != last.hash:
            raise _forked(found, f"Head {number} does not follow on head {last.number}.")
        if not signs(found, self.state.key):
            raise _forked(found, f"Head {number} is signed by a key that was replaced before.")
        return found

    def _keep(self, found: Served) -> None:
        """Remember this head for good, before anything is signed."""
        if successor := found.head.successor:
            if not signs(found, successor):
                raise Unusable(f"Head {found.head.number} names a new key, which has not signed it.")
            self.state.former.append(self.state.key)
            self.state.key = successor
        self.state.head, self.state.handed_in = str(found.note), False
        self._save()

    def _hand_in(self, said: str) -> str:
        if self.state.handed_in:
            return said
        kept = served(self.state.head)
        line = self._signer.cosign(kept.note.text, int(time.time()))
        self._log.cosign(kept.head.number, str(line))
        others = tuple(each for each in kept.note.signatures if each.name != self._signer.name)
        self.state.head = str(kept.note._replace(signatures=(*others, line)))
        self.state.handed_in = True
        return said

    def _save(self) -> None:
        self._folder.write(STATE_FILE, self.state.text)

    # --- What is wrong ---

    def _turn_red(self, found: Contradiction) -> str:
        """Keep both sides, then say so. Nothing is signed from now on until an operator accepts a break."""
        at = _now()
        name = f"evidence-{at.replace(':', '')}-{found.code}.json"
        evidence = {"found_at": at, "code": found.code, "sentence": found.sentence}
        both = {**evidence, "kept": self.state.head, "seen": found.seen}
        self._folder.write(name, json.dumps(both, indent=2, ensure_ascii=False) + "\n")
        self.state.red = {**evidence, "evidence": name}
        self._save()
        with contextlib.suppress(Unusable):  # it is said again at every check
            self._complain()
        return f"red: {found.sentence}"

    def _complain(self) -> None:
        """Tell the site, signed, which head it is that the log does not stand by."""
        kept = served(self.state.head).note
        line = self._signer.cosign(kept.text, int(time.time()))
        others = tuple(each for each in kept.signatures if each.name != self._signer.name)
        self._log.contradict(self.state.red["code"], str(kept._replace(signatures=(*others, line))))

    def _accept(self) -> bool:
        """Whether an operator has accepted a break; the witness goes on from there."""
        text = self._folder.read(ACCEPTED)
        if text is None:
            return False
        try:
            found, key = acceptable(self.state, text)
        except Unusable:  # it was taken over before a crash
            self._folder.remove(ACCEPTED)
            return False
        if key != self.state.key:
            self.state.former.append(self.state.key)
            self.state.key = key
        self.state.red = {}
        self._keep(found)
        self._folder.remove(ACCEPTED)
        return True


def acceptable(state: State, text: str) -> tuple[Served, str]:
    """The head with a signed `break` from which a red witness may go on, and its key. Raises Unusable if it is none."""
    if not state.red:
        raise Unusable("The witness is not red: there is nothing to accept.")
    found, kept = served(text), served(state.head).head
    head = found.head
    if head.origin != kept.origin:
        raise Unusable(f"This head is of the log {head.origin[:200]}, and {kept.origin} is witnessed here.")
    if head.broken is None:
        raise Unusable("This head has no `break` line: it does not say that an older state was restored, or why.")
    key = next((each for each in (state.key, *reversed(state.former)) if signs(found, each)), None)
    if key is None:
        raise Unusable(f"This head is not signed by {state.key}.")
    if head.sealed_at <= kept.sealed_at:
        raise Unusable(f"This break is from before head {kept.number}, so it cannot explain why that one is missing.")
    return found, key


def signs(found: Served, key: str) -> bool:
    """Whether that key signed the head. Raises Unusable for a signature that claims to be the key's, and is not."""
    try:
        return bool(verify.check_note(found.note, [key]))
    except verify.NoteError as error:
        raise Unusable(f"Head {found.head.number} is refused: {error}.") from error


def _forked(found: Served, sentence: str) -> Contradiction:
    return Contradiction("head_forked", sentence, str(found.note))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- The program ------------------------------------------------------------------------------------------------------


def prepare(folder: Folder, name: str) -> Signer:
    """The key in the folder; made at the first time, with this name."""
    if (text := folder.read(KEY_FILE)) is not None:
        return Signer.parse(text)
    signer = Signer.new(name)
    folder.write(KEY_FILE, signer.text)
    return signer


def drop(user: str, folder: Folder) -> None:
    """Become that user for good, and give the folder to it. Raises Unusable."""
    try:
        account = pwd.getpwnam(user)
        folder.own(account.pw_uid, account.pw_gid)
        dying = ctypes.c_int()
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(dying), 0, 0, 0)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        libc.prctl(_PR_SET_PDEATHSIG, dying, 0, 0, 0)  # the kernel forgets it with the change of user
    except (KeyError, OSError) as error:
        raise Unusable(f"The witness cannot run as the user {user!r}: {error}.") from error


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; returns the exit code: 0, 1 for what did not work, 3 when the witness is red."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(OK))
    try:
        done: int = options.do(options)
    except (Unusable, verify.NoteError) as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return OK
    return done


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="witness.py", description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = _command(commands, "run", _run, "follow the log, and sign what continues it")
    accept = _command(commands, "accept", _accept, "go on after a restored backup, from a head with a signed break")
    accept.add_argument("--head", required=True, metavar="N", help="number of the head, or a file that holds it")
    _command(commands, "status", _status, "say how things stand; exit code 3 when the witness is red")
    key = _command(commands, "key", _key, "print the key for LEDGER_WITNESSES; made at the first time")
    key.add_argument("--public", type=Path, metavar="FILE", help="write it to this file as well, for everybody to read")
    for each in (run, accept):
        each.add_argument("--url", required=each is run, help="address of the site")
        each.add_argument("--token-file", type=Path, help=f"file with the witness's token (default: ${TOKEN_VARIABLE})")
        each.add_argument("--host", help="name of the site, where the address is another one")
    for each in (run, key):
        each.add_argument("--name", default=socket.gethostname(), help="name in signatures (default: %(default)s)")
        each.add_argument("--user", help="become this user, once everything is open")
    run.add_argument("--key", type=Path, metavar="FILE", help="the witness's key (default: one in the directory)")
    run.add_argument("--log-key", default="", metavar="VKEY", help="the log's key (default: what it first signs with)")
    run.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help="between checks (default: 5)")
    run.add_argument("--once", action="store_true", help="check once, say what was found, and end")
    return parser


def _command(commands: Any, name: str, do: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="what the witness remembers")
    parser.set_defaults(do=do)
    return parser


def _log_of(options: argparse.Namespace) -> Log:
    given = _content(options.token_file) if options.token_file else os.environ.get("LEDGER_WITNESS_TOKEN", "")
    if not (token := given.strip()).isascii() or not token.isprintable() or not token:
        raise Unusable(f"There is no token: name a file with --token-file, or set {TOKEN_VARIABLE}.")
    return Log(options.url, token, options.host)


def _run(options: argparse.Namespace) -> int:
    folder = Folder(options.state)
    folder.lock()
    signer = Signer.parse(_content(options.key)) if options.key else prepare(folder, options.name)
    log = _log_of(options)
    if options.user:
        _load_all(signer)
        drop(options.user, folder)
    witness = Witness(folder, signer, log, options.log_key)
    if options.once:
        print(witness.check())
        return RED if witness.state.red else OK
    told, failures = "", 0
    while True:
        try:
            said, failures = witness.check(), 0
        except Unusable as error:
            said, failures = f"cannot tell: {error}", failures + 1
        sort = "ok" if failures == 0 and not witness.state.red else said
        # What passes by itself is not worth a line: a moment without an answer, the first seconds of an installation.
        if sort != told and failures not in (1, 2):
            _say("info" if sort == "ok" else "error", said)
            told = sort
        time.sleep(_pause(options.interval, failures))


def _load_all(signer: Signer) -> None:
    """Use what is loaded at its first use, since its files may be out of another user's reach."""
    signer.public.signed("", signer.cosign("", 0).blob)
    "localhost".encode("idna")
    ssl.create_default_context()


def _pause(interval: float, failures: int) -> float:
    """Longer after the third failure in a row and each further one, up to a minute."""
    return min(interval * (1 << min(max(failures - 2, 0), 8)), max(interval, _LONGEST_PAUSE_SECONDS))


def _say(level: str, message: str) -> None:
    line = {"time": _now(), "level": level, "logger": "audit.witness", "message": message, "process": os.getpid()}
    print(json.dumps(line), flush=True)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}.") from error


def _accept(options: argparse.Namespace) -> int:
    folder = Folder(options.state)
    if options.head.isdecimal():
        if not options.url:
            raise Unusable("Name the log with --url, or a file that holds the head.")
        text = str(_log_of(options).head(int(options.head)).note)
    else:
        text = _content(Path(options.head))
    found, _ = acceptable(State.parse(folder.read(STATE_FILE)), text)
    folder.write(ACCEPTED, text)
    print(f"Accepted: head {found.head.number}, {found.head.broken!r}. The witness goes on from it at its next check.")
    return OK


def _status(options: argparse.Namespace) -> int:
    folder = Folder(options.state)
    state = State.parse(folder.read(STATE_FILE))
    key = folder.read(KEY_FILE)
    if key is not None:
        print(f"key      {Signer.parse(key).public}")
    print(f"log      {state.key or 'not known yet'}")
    if state.head:
        head = served(state.head).head
        print(f"head     {head.number}, {head.size} records, sealed {verify.time_text(head.sealed_at)}")
    print(f"checked  {state.checked_at or 'never'}")
    if state.problem:
        print(f"problem  {state.problem}")
    if state.red:
        print(f"RED      {state.red['sentence']}")
        print(f"         Found {state.red['found_at']}; both heads are in {options.state / state.red['evidence']}.")
        return RED
    return FAILED if state.problem or not state.head else OK


def _key(options: argparse.Namespace) -> int:
    folder = Folder(options.state)
    signer = prepare(folder, options.name)
    if options.user:
        drop(options.user, folder)
    if options.public:
        Folder(options.public.parent).write(options.public.name, f"{signer.public}\n", 0o644)
    print(signer.public)
    return OK


if __name__ == "__main__":
    sys.exit(main())
