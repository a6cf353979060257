"""Verifies the ledger, and stands alone: this one file needs Python and `cryptography`, and nothing of the rest.

What it checks, and the formats, are described in docs/evidence.md. The rest of the project imports them from here.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import hashlib
import hmac
import io
import json
import os
import sys
import time
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# The columns that a leaf covers, in order. New ones are appended, and the new length added to FORMATS.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("rid", "uuid"),
    ("at", "timestamptz"),
    ("kind", "text"),
    ("call_id", "uuid"),
    ("writer_id", "uuid"),
    ("writer_seq", "bigint"),
    ("actor", "text"),
    ("actor_id", "text"),
    ("on_behalf_of", "text"),
    ("token", "text"),
    ("roles", "text"),
    ("door", "text"),
    ("client", "text"),
    ("address", "text"),
    ("connector", "text"),
    ("tool", "text"),
    ("effect", "text"),
    ("definition", "bytea"),
    ("policy_version", "bigint"),
    ("decision", "text"),
    ("code", "text"),
    ("object_type", "text"),
    ("object_id", "text"),
    ("detail", "text"),
    ("trace_id", "text"),
    ("request_id", "text"),
    ("args_commit", "bytea"),
    ("result_commit", "bytea"),
    ("result_bytes", "bigint"),
    ("upstream_us", "bigint"),
    ("total_us", "bigint"),
    ("ct", "bytea"),
    ("key_id", "text"),
    ("shown", "text"),
)
# How many columns a leaf covered, ever.
FORMATS: tuple[int, ...] = (33, 34)

_NAMES = frozenset(name for name, _ in COLUMNS)

# What is read as a whole, and the longest line of a record: ten times what an installation can be set to write.
_LARGEST_FILE, _LONGEST_LINE = 1 << 30, 1 << 28
# As many leaves as anything may speak of: their bits take a gigabyte.
_MOST_PLACES = 1 << 33

_LENGTH, _BIGINT = Struct("!i"), Struct("!q")
_NULL = _LENGTH.pack(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# --- Leaf -------------------------------------------------------------------------------------------------------------


def leaf_hash(fields: Iterable[bytes | None]) -> bytes:
    """The leaf (RFC 6962, 2.1) of a record with these fields: PostgreSQL's binary values of the first of `COLUMNS`."""
    packed = (_NULL if field is None else _LENGTH.pack(len(field)) + field for field in fields)
    return hashlib.sha256(b"\0" + b"".join(packed)).digest()


def binary(value: Any, kind: str) -> bytes | None:
    """PostgreSQL's binary form of a value as it stands in JSON; ValueError when it is none of `kind`."""
    if value is None:
        return None
    try:
        match kind:
            case "text":
                return str.encode(value)
            case "uuid":
                return UUID(value).bytes
            case "bigint":
                return _BIGINT.pack(_whole(value))
            case "bytea":
                return bytes.fromhex(value)
            case "timestamptz":
                return _BIGINT.pack((datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND)
    except Exception as error:
        raise ValueError(f"{value!r:.80} is no {kind}") from error
    raise ValueError(f"{kind!r} is no type of a column")


def _whole(value: Any) -> int:
    """The number, if it is a whole one; ValueError otherwise: `true` is not 1, and 1e999 none at all."""
    if type(value) is not int:
        raise ValueError(f"{value!r:.80} is no whole number")
    return value


def fields_of(record: Mapping[str, Any]) -> list[bytes | None]:
    """The fields of a record as JSON (docs/evidence.md), in the order of `COLUMNS`; what is not there is NULL."""
    return [binary(record.get(name), kind) for name, kind in COLUMNS]


def leaves_of(fields: Sequence[bytes | None]) -> Iterator[bytes]:
    """Every leaf that a record with these fields may have: of each length of `FORMATS` after which all is NULL."""
    for length in reversed(FORMATS):
        if length <= len(fields) and all(field is None for field in fields[length:]):
            yield leaf_hash(fields[:length])


def parse_json(text: str) -> Any:
    """What the text says to every reader alike; ValueError when it says a name twice, is no number's, or too deep."""
    try:
        return json.loads(text, object_pairs_hook=_named_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it says a name twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def time_text(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds and `Z`."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- Tree -------------------------------------------------------------------------------------------------------------

EMPTY_ROOT = hashlib.sha256(b"").digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The parent of two nodes (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows by leaves and keeps only its peaks: the roots of its complete subtrees, the largest first."""

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        if len(self.peaks) != size.bit_count():
            raise ValueError(f"A tree of {size} leaves has {size.bit_count()} peaks, not {len(self.peaks)}")

    def append(self, leaf: bytes) -> None:
        """Add a leaf on the right."""
        merges = (~self.size & self.size + 1).bit_length() - 1
        for _ in range(merges):
            leaf = node_hash(self.peaks.pop(), leaf)
        self.peaks.append(leaf)
        self.size += 1

    def append_subtree(self, height: int, root: bytes) -> list[tuple[int, bytes]]:
        """Add a complete subtree of `2 ** height` leaves on the right, of a tree that ends at such a border.

        Returns the complete subtrees that end here, as (height, root), the smallest first.
        """
        if self.size % (1 << height):
            raise ValueError(f"After {self.size} leaves no subtree of height {height} can begin")
        place, made = self.size >> height, [(height, root)]
        for step in range((~place & place + 1).bit_length() - 1):
            root = node_hash(self.peaks.pop(), root)
            made.append((height + step + 1, root))
        self.peaks.append(root)
        self.size += 1 << height
        return made

    def copy(self) -> Tree:
        """One that grows on its own."""
        return Tree(self.size, self.peaks)

    @property
    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            root = node_hash(peak, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaves (RFC 6962, 2.1)."""
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root


def inclusion_root(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that follows from a leaf and its path (RFC 9162, 2.1.3.2); ValueError if none can."""
    if not 0 <= index < size:
        raise ValueError(f"There is no leaf {index} in a tree of {size}")
    node, last, root = index, size - 1, leaf
    for step in path:
        if last == 0:
            raise ValueError("The path is too long")
        if node & 1 or node == last:
            root = node_hash(step, root)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, step)
        node, last = node >> 1, last >> 1
    if last:
        raise ValueError("The path is too short")
    return root


def consistency_roots(first: int, second: int, first_root: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The roots of both sizes that follow from a path (RFC 9162, 2.1.4.2); ValueError if none can."""
    if not 0 < first < second:
        raise ValueError(f"Nothing follows from a path from size {first} to {second}")
    steps = list(path)
    if not first & (first - 1):
        steps.insert(0, first_root)
    if not steps:
        raise ValueError("The path is too short")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise ValueError("The path is too long")
        if node & 1 or node == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, step)
        node, last = node >> 1, last >> 1
    if last:
        raise ValueError("The path is too short")
    return old, new


def consistent(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the tree of `second` leaves continues the one of `first` leaves, as the path shows."""
    if first > second:
        return False
    if first == second:
        return first_root == second_root and not path
    if first == 0:
        return first_root == EMPTY_ROOT and not path
    try:
        return consistency_roots(first, second, first_root, path) == (first_root, second_root)
    except ValueError:
        return False


# --- Notes (c2sp.org/signed-note, /tlog-cosignature) ------------------------------------------------------------------

ED25519, COSIGNATURE = 1, 4


class NoteError(ValueError):
    """A note, a key or a head is not what it must be; the message says why."""


class Signature(NamedTuple):
    """A line under a note: the name of a key, the first bytes of its hash, and what it signed with."""

    name: str
    key: bytes
    blob: bytes

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key + self.blob).decode()}"


class Note(NamedTuple):
    """A text, which ends with a newline, and the signatures under it."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(f"{each}\n" for each in self.signatures)


class Key(NamedTuple):
    """A public key that signs notes under a name; `kind` is ED25519 or COSIGNATURE."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """What a signature line names the key by."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    def signed(self, text: str, blob: bytes) -> bool:
        """Whether `blob` is this key's signature on the text of a note."""
        message, signature = text.encode(), blob
        if self.kind == COSIGNATURE:
            message = b"cosignature/v1\ntime %d\n" % int.from_bytes(blob[:8]) + message
            signature = blob[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def key_id(origin: str, public_key: bytes, kind: int = ED25519) -> bytes:
    """The four bytes by which a signature line names a key."""
    return Key(origin, kind, public_key).id


def vkey(origin: str, public_key: bytes, kind: int = ED25519) -> str:
    """A key as people pass it on: `<origin>+<key id>+<base64>`."""
    return str(Key(origin, kind, public_key))


def parse_vkey(text: str) -> Key:
    """The key; NoteError when it is none, or its id is not its own."""
    name, _, rest = text.strip().partition("+")
    identity, _, encoded = rest.partition("+")
    data = _unbase64(encoded, "key")
    if not _is_name(name) or len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
        raise NoteError(f"Not a key: {text.strip()[:200]!r}")
    key = Key(name, data[0], data[1:])
    if key.id.hex() != identity:
        raise NoteError(f"The key of {name} has the id {key.id.hex()}, not {identity[:20]}")
    return key


def parse_note(text: str) -> Note:
    """The note; NoteError when it is none."""
    body, separator, lines = text.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise NoteError("Not a signed note: it has no signatures")
    if any(ord(each) < 0x20 and each != "\n" for each in text):
        raise NoteError("Not a signed note: it has control characters")
    return Note(body + "\n", tuple(parse_signature(line) for line in lines[:-1].split("\n")))


def parse_signature(line: str) -> Signature:
    """A signature line, without its newline; NoteError when it is none."""
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    data = _unbase64(encoded, "signature")
    if dash != "—" or not _is_name(name) or len(data) < 5:
        raise NoteError(f"Not a line of a signature: {line[:200]!r}")
    return Signature(name, data[:4], data[4:])


def check_note(note: Note, vkeys: Iterable[str | Key]) -> list[str]:
    """Those of the keys that signed; NoteError when a line names one of them and is not its signature.

    Lines of other keys are passed over, as the format demands.
    """
    keys = [parse_vkey(each) if isinstance(each, str) else each for each in vkeys]
    by_line = {(key.name, key.id): key for key in keys}
    signed = []
    for signature in note.signatures:
        key = by_line.get((signature.name, signature.key))
        if key is None:
            continue
        if not key.signed(note.text, signature.blob):
            raise NoteError(f"The signature of {key.name} ({key.id.hex()}) does not fit the text")
        signed.append(str(key))
    return signed


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(each.isspace() for each in name)


def _unbase64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"Not the base64 of a {what}: {text[:200]!r}") from error


# --- Heads ------------------------------------------------------------------------------------------------------------

FIRST_PREVIOUS = bytes(32)


class Head(NamedTuple):
    """What a head says. `further` are the lines after the six that every head has."""

    origin: str
    size: int
    root: bytes
    number: int
    previous: bytes
    sealed_at: datetime
    further: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text that is signed."""
        lines = (
            self.origin,
            str(self.size),
            base64.b64encode(self.root).decode(),
            f"number {self.number}",
            f"previous {base64.b64encode(self.previous).decode()}",
            f"sealed {time_text(self.sealed_at)}",
            *self.further,
        )
        return "".join(f"{line}\n" for line in lines)

    @property
    def hash(self) -> bytes:
        """What the next head names as its `previous`."""
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def successor(self) -> str | None:
        """The key that signs from the next head on."""
        return self._said("successor")

    @property
    def broken(self) -> str | None:
        """Why an operator accepted that an older state was restored."""
        said = self._said("break")
        if said is None:
            return None
        try:
            return base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)).decode("utf-8", "replace")
        except ValueError:
            return said

    def _said(self, word: str) -> str | None:
        return next((line.partition(" ")[2] for line in self.further if line.partition(" ")[0] == word), None)


def parse_head(text: str) -> Head:
    """What the text of a head says; NoteError when it is not written exactly as it must be."""
    lines = text.split("\n")
    if len(lines) < 7 or lines[-1]:
        raise NoteError("Not a head: it needs six lines, and a newline at the end")
    try:
        head = Head(
            origin=lines[0],
            size=int(lines[1]),
            root=_unbase64(lines[2], "root"),
            number=int(_after("number ", lines[3])),
            previous=_unbase64(_after("previous ", lines[4]), "previous head"),
            sealed_at=datetime.fromisoformat(_after("sealed ", lines[5])),
            further=tuple(lines[6:-1]),
        )
    except NoteError:
        raise
    except ValueError as error:
        raise NoteError(f"Not a head: {error}") from error
    if head.sealed_at.tzinfo is None or head.text != text or len(head.root) != 32 or len(head.previous) != 32:
        raise NoteError("Not a head: a line is not written as it must be")
    return head


def _after(word: str, line: str) -> str:
    if not line.startswith(word):
        raise NoteError(f"Not a head: {line[:80]!r} does not begin with {word.strip()!r}")
    return line.removeprefix(word)


# --- Verdicts ---------------------------------------------------------------------------------------------------------

MODIFIED, MISSING, INSERTED, REORDERED = "MODIFIED", "MISSING", "INSERTED", "REORDERED"
ROLLED_BACK, UNSEALED_OLD, EXPIRED, OK = "ROLLED_BACK", "UNSEALED_OLD", "EXPIRED", "OK"
# The gravest first: what the verdict on the whole is. EXPIRED is a gap that a certificate explains, and no fault.
FAULTS = (ROLLED_BACK, MODIFIED, MISSING, INSERTED, REORDERED, UNSEALED_OLD)
_LISTED = 100
_KEPT = 20_000
_LONGEST_TOLD = 2_000


class Finding(NamedTuple):
    """Something that is not as it was sealed, and where: numbers and ids that are known."""

    verdict: str
    what: str
    place: dict[str, Any]

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value}" for name, value in self.place.items())
        return _printable(f"{self.verdict}  {where}: {self.what}" if where else f"{self.verdict}  {self.what}")


class Report:
    """What a verification came to. Findings are all counted; the first are kept."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}

    def find(self, verdict: str, what: str, count: int = 1, **place: Any) -> None:
        """Take down a finding, which stands for `count` of its sort."""
        self.counts[verdict] = self.counts.get(verdict, 0) + count
        if len(self.findings) < _KEPT:
            self.findings.append(Finding(verdict, what, {k: v for k, v in place.items() if v is not None}))

    def note(self, text: str) -> None:
        """Something to know that is no fault."""
        self.notes.append(text)

    @property
    def verdict(self) -> str:
        """OK, or the gravest of the faults."""
        return next((each for each in FAULTS if self.counts.get(each)), OK)

    @property
    def faults(self) -> int:
        """How many there are."""
        return sum(self.counts.get(each, 0) for each in FAULTS)

    def as_json(self, listed: int = _LISTED) -> dict[str, Any]:
        """The report for programs."""
        found = [{"verdict": each.verdict, "what": each.what, **each.place} for each in self._ordered()[:listed]]
        return {
            "verdict": self.verdict,
            "counts": self.counts,
            "findings": found,
            "notes": self.notes,
            **self.facts,
        }

    def __str__(self) -> str:
        lines = [_printable(f"{self.verdict}{self._summary()}")]
        lines += [f"  {each}" for each in self._ordered()[:_LISTED]]
        total = sum(self.counts.values())
        if total > min(len(self.findings), _LISTED):
            lines.append(f"  … {total:,} findings in all: {self._counted()}")
        lines += [f"  note: {_printable(each)}" for each in self.notes]
        return "\n".join(lines)

    def _ordered(self) -> list[Finding]:
        order = {verdict: place for place, verdict in enumerate((*FAULTS, EXPIRED))}
        return sorted(self.findings, key=lambda each: order[each.verdict])

    def _counted(self) -> str:
        return ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(self.counts.items()))

    def _summary(self) -> str:
        facts = ", ".join(f"{name} {_shown(value)}" for name, value in self.facts.items() if value is not None)
        return f": {facts}" if facts else ""


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _printable(text: str) -> str:
    """One line of bounded length: what is verified may be of somebody who wants to draw on the auditor's screen."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[:_LONGEST_TOLD])


class Unusable(Exception):
    """The input cannot be verified at all: it is not there, or of no format that is known. Says what to do."""


# --- Keys and their succession ----------------------------------------------------------------------------------------


class Trust:
    """Which keys may sign. `given` are from the verifier's own sources, `found` came with the ledger.

    To be found beside a ledger makes no key its own: `proven` are those that were given, and those that heads were
    signed with in the succession of keys. What is not a head must be signed by one of these.
    """

    def __init__(self, given: Iterable[str], found: Iterable[str]) -> None:
        keys = [parse_vkey(each) for each in given]
        self.given = {str(key) for key in keys if key.kind == ED25519}
        self.witnesses = [key for key in keys if key.kind == COSIGNATURE]
        self.known = {str(key): key for key in keys if key.kind == ED25519}
        self.proven = set(self.given)
        self.unreadable: list[str] = []
        for text in found:
            try:
                key = parse_vkey(text)
            except NoteError as error:
                self.unreadable.append(str(error))
                continue
            if key.kind == ED25519:
                self.known.setdefault(str(key), key)

    def learn(self, text: str) -> None:
        """A successor that a head names."""
        key = parse_vkey(text)
        self.known.setdefault(str(key), key)

    def explain(self, report: Report, used: Iterable[str]) -> None:
        """Say whether the keys that signed hang together with those that were given."""
        for each in self.unreadable:
            report.find(MODIFIED, f"a key that came with the ledger cannot be read: {each}")
        if not self.given:
            report.note(
                "No key was given: the keys that came with the ledger were trusted. Somebody who replaced all of it,"
                " keys included, would not be noticed. Give the keys that you were told by another way with --key."
            )
        elif not self.given & set(used):
            report.find(MODIFIED, "no head is signed by a key that you trust, or by a successor of one")


class Signers:
    """Follows the key in force along the heads: a head that names a successor is signed by both."""

    def __init__(self, trust: Trust, report: Report) -> None:
        self._trust, self._report = trust, report
        self.key: str | None = None
        self.used: set[str] = set()
        self.origin: str | None = None

    def check(self, head: Head, note: Note, signed: Sequence[str], fault: str | None) -> bool:
        """Whether the head is validly signed by the key in force; `signed` are the known keys that signed it."""
        wanted = self.key or next(iter(signed), None)
        if self.origin is None:
            self.origin = head.origin
        if head.origin != self.origin:
            fault = f"its origin is {head.origin}, not {self.origin}"
        elif fault is None and (wanted is None or wanted not in signed):
            names = ", ".join(each.key.hex() for each in note.signatures)
            fault = f"it is not signed by the key in force ({_id(wanted)}); its lines are of {names}"
        elif fault is None and head.successor and str(parse_vkey(head.successor)) not in signed:
            fault = f"it names a successor ({_id(head.successor)}) that did not sign it"
        if fault:
            self._report.find(MODIFIED, f"the head is not what the sealer signed: {fault}", head=head.number)
            return False
        assert wanted is not None
        self.used.add(wanted)
        self.key = str(parse_vkey(head.successor)) if head.successor else wanted
        if head.successor:
            self._report.note(f"From head {head.number + 1} on the key {_id(self.key)} signs.")
            self.used.add(self.key)
        self._trust.proven |= self.used
        return True


def _id(vkey: str | None) -> str:
    return parse_vkey(vkey).id.hex() if vkey else "none is known"


def signers_of(note: Note, head: Head, trust: Trust) -> tuple[list[str], str | None]:
    """Which known keys signed, and what is wrong with the signatures."""
    try:
        if head.successor:
            trust.learn(head.successor)
        return check_note(note, trust.known.values()), None
    except NoteError as error:
        return [], str(error)


# --- Witness ----------------------------------------------------------------------------------------------------------


class Witnessed(NamedTuple):
    """A head that somebody keeps outside of the ledger."""

    head: Head
    note: Note


def read_witness(path: str) -> tuple[Witnessed, list[str]]:
    """The head that a file keeps, and the keys that it holds: a signed note, JSON with one, or the lines of an anchor,
    of which the last whole one counts. Raises Unusable.
    """
    text = _last_line(_read_text(path))
    keys: list[str] = []
    if text.lstrip().startswith("{"):
        document = _json(text, path)
        named = [document.get("key"), *(document.get("former") or []), *(document.get("keys") or [])]
        keys = [each for each in named if isinstance(each, str)]
        held = next((document[name] for name in ("head", "note", "to") if isinstance(document.get(name), str)), None)
        if held is None:
            raise Unusable(f"{path} holds no head of a witness")
        text = held
    try:
        note = parse_note(text)
        return Witnessed(parse_head(note.text), note), keys
    except NoteError as error:
        raise Unusable(f"{path} holds no head of a witness: {error}") from error


def _last_line(text: str) -> str:
    """Of lines of JSON the last one that is whole; any other text as it is."""
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}") and len(line) > 2]
    return lines[-1] if lines else text


class Breaks(NamedTuple):
    """Heads by which operators accepted that an older state was restored, and the numbers of those that we accept."""

    signed: Sequence[Head] = ()
    accepted: Sequence[int] = ()

    def tell(self, report: Report, lost: Head, what: str) -> None:
        """That the head is lost is ROLLED_BACK; a note, if a later break explains it, and was accepted."""
        later = [each for each in self.signed if each.sealed_at > lost.sealed_at]
        if not later:
            report.find(ROLLED_BACK, what, head=lost.number)
            return
        by = next((each for each in later if each.number in self.accepted), later[0])
        what = f"{what}; head {by.number} of {_time(by.sealed_at)} explains it by a signed break: {by.broken}"
        if by.number in self.accepted:
            report.note(f"{what} (accepted by you)")
        else:
            how = f"if you know of that restore, accept it with --accept-break {by.number}"
            report.find(ROLLED_BACK, f"{what}; {how}", head=lost.number, broken=by.number)


_NO_BREAKS = Breaks()


def check_witnessed(
    report: Report,
    kept: Witnessed,
    found: Head | None,
    newest: int | None,
    trust: Trust,
    origin: str | None,
    breaks: Breaks = _NO_BREAKS,
) -> None:
    """Compare the head that a witness keeps with what the ledger has under its number."""
    head = kept.head
    if origin is not None and head.origin != origin:
        report.find(MODIFIED, f"the witness's head is of another ledger: {head.origin}", head=head.number)
        return
    try:
        if not check_note(kept.note, trust.known.values()) and found is not None:
            report.find(MODIFIED, "the witness's head is not signed by a key of this ledger", head=head.number)
            return
    except NoteError as error:
        report.find(MODIFIED, f"the witness's head: {error}", head=head.number)
        return
    if found is None:
        what = f"the witness keeps head {head.number} of {_time(head.sealed_at)}, the newest here is {newest}"
        breaks.tell(report, head, what)
    elif found.text != head.text:
        what = f"head {head.number} is another one than the witness keeps, which was sealed {_time(head.sealed_at)}"
        breaks.tell(report, head, what)
    else:
        report.note(f"The ledger holds the head that the witness keeps: {head.number}, sealed {_time(head.sealed_at)}.")


def check_cosignatures(report: Report, head: Head, note: Note, trust: Trust) -> int:
    """How many of the witnesses that are known signed the head."""
    try:
        return len(check_note(note, trust.witnesses))
    except NoteError as error:
        report.find(MODIFIED, f"a cosignature is not the witness's: {error}", head=head.number)
        return 0


def _time(moment: datetime) -> str:
    return time_text(moment)[:19] + "Z"


# --- Gap certificates -------------------------------------------------------------------------------------------------


class Gap(NamedTuple):
    """Leaves whose records left the ledger under a certificate, as bits from `first` on."""

    first: int
    last: int
    bits: bytes
    month: str

    def holds(self, seq: int) -> bool:
        """Whether the record of this leaf left under it."""
        place = seq - self.first
        return 0 <= place <= self.last - self.first and bool(self.bits[place >> 3] >> (place & 7) & 1)


def manifest_text(purpose: str, digest: bytes) -> str:
    """What the sealer signs of something that is downloaded or kept apart, by its SHA-256."""
    return f"mcpsite manifest\n{purpose}\n{base64.b64encode(digest).decode()}\n"


def check_manifest(content: bytes, purpose: str, note_text: str, trust: Trust) -> None:
    """NoteError when the note is not over this content and purpose, or by none of the keys that sign the heads."""
    note = parse_note(note_text)
    if note.text != manifest_text(purpose, hashlib.sha256(content).digest()):
        raise NoteError("the signature is over something else")
    if trust.proven.isdisjoint(check_note(note, trust.known.values())):
        raise NoteError("it is not signed by a key of this ledger")


def read_gap(report: Report, body: str, note: str | None, trust: Trust, name: str) -> Gap | None:
    """The gap that a certificate explains; None, with a finding, when it explains nothing."""
    try:
        if note is None:
            raise NoteError("it is not signed")
        check_manifest(body.encode(), "gap", note, trust)
        said = parse_json(body)
        if said["format"] != "mcpsite-gap/1":
            raise NoteError(f"its format is {said['format']!r}")
        if said["proposed"]["id"] == said["approved"]["id"]:
            raise NoteError("one person alone proposed and approved it")
        first, last = _whole(said["first_seq"]), _whole(said["last_seq"])
        if not 0 <= first <= last < first + _MOST_PLACES:
            raise NoteError(f"it is for leaves {first} to {last}, which cannot be")
        length = (last - first) // 8 + 1
        bits = zlib.decompressobj().decompress(base64.b64decode(said["removed"]), length + 1)
        if len(bits) != length or hashlib.sha256(bits).hexdigest() != said["removed_sha256"]:
            raise NoteError("its bits are not those that it was approved for")
        return Gap(first, last, bits, str(said["month"]))
    except (NoteError, ValueError, KeyError, TypeError, zlib.error) as error:
        report.find(MODIFIED, f"the gap certificate explains nothing: {error}", certificate=name)
        return None


# --- The database: what is looked at, piece by piece ------------------------------------------------------------------

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_ROWS_A_PIECE = 50_000
_HEADS_A_PIECE = 5_000
_OLD_SECONDS = 60
_LATE_US = 60 * 1_000_000
_HEADER_BYTES = 19
_TRAILER = b"\xff\xff"
_FIXED = "CASE WHEN length({0}) = 32 THEN {0} ELSE '\\x" + "00" * 32 + "'::bytea END"
# Count of fields, then length and value of each: what is about the record, before the fields that its leaf covers.
_ROW = Struct("!hiqiqi32si32si32si?iqi16siq")
_RECORDS = (
    f"SELECT r.id, coalesce(l.seq, -1), {_FIXED.format('r.leaf')}, {_FIXED.format('r.mac')},"  # noqa: S608 - constants
    f" {_FIXED.format('l.leaf')}, l.at IS DISTINCT FROM r.at, coalesce(l.at, r.at), r.writer_id,"
    f" coalesce(r.writer_seq, -1), {', '.join(f'r.{name}' for name, _ in COLUMNS)}"
    " FROM audit_record r LEFT JOIN audit_leaf l ON l.record_id = r.id"
)
_LEAF = Struct("!hiqiqiqi32s")
_NULLS = {length: _NULL * (len(COLUMNS) - length) for length in FORMATS[:-1]}
_SAY_LITTLE: dict[str, tuple[str | None, ...]] = {
    "kind": ("call", "intent", "outcome", "denied", "invalid", "config", "auth", "agent", "system"),
    "decision": ("allow", "deny"),
    "effect": ("read", "write", "destructive"),
    "door": ("mcp", "rest", "admin", "agent", "command"),
    "code": ("ok", "tool_error", "intended", "create", "update", "delete", "login", "not_granted"),
}


class Piece(NamedTuple):
    """A part of the work that a process of its own can do: from `first` to before `past`, in a shared snapshot."""

    sort: str
    first: int
    past: int
    url: str
    snapshot: str
    since: datetime | None = None
    until: datetime | None = None
    mac_keys: tuple[bytes, ...] = ()
    vkeys: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()


class Suspect(NamedTuple):
    """A record that is not what its leaf says, or that has no leaf. `seq` is None then."""

    id: int
    rid: str
    at: datetime
    seq: int | None
    computed: bytes
    own_leaf: bytes
    sealed_leaf: bytes
    sealed_time_differs: bool
    mac_fits: bool
    guess: str | None


class Seen(NamedTuple):
    """What came out of a piece."""

    rows: int = 0
    suspects: tuple[Suspect, ...] = ()
    twice: tuple[int, ...] = ()
    # Writer → how many records, the first and last of its numbers, their sum.
    writers: dict[bytes, tuple[int, int, int, int]] = {}
    # Of heads: which known keys signed most of them, and those that are different with what is wrong.
    usual: tuple[str, ...] = ()
    others: dict[int, tuple[tuple[str, ...], str | None]] = {}
    # Leaves without a record: (seq, record id, leaf), and how many of them a certificate explains, by month.
    missing: tuple[tuple[int, int, bytes], ...] = ()
    missed: int = 0
    expired: dict[str, int] = {}


def _connect(url: str, snapshot: str | None = None) -> Any:
    """A connection in a read-only transaction that sees one state of the database. Raises Unusable."""
    try:
        import psycopg
    except ImportError as error:
        raise Unusable("To read a database, psycopg is needed: pip install 'psycopg[binary]'") from error
    try:
        connection = psycopg.connect(url, autocommit=True, client_encoding="utf8")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET statement_timeout = 0")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if snapshot:
            connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
    except psycopg.Error as error:
        raise Unusable(f"The database cannot be read: {str(error).strip()}") from error
    return connection


def _rows(connection: Any, query: str) -> Iterator[bytes]:
    """The rows of a query in PostgreSQL's binary format, one after the other."""
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
        first = True
        for data in copy:
            row = bytes(data[_HEADER_BYTES:]) if first else bytes(data)
            first = False
            if row and row != _TRAILER:
                yield row


def examine(piece: Piece) -> Seen:
    """Do the piece's work."""
    connection = _connect(piece.url, piece.snapshot)
    try:
        match piece.sort:
            case "records":
                return _examine_records(connection, piece)
            case "signatures":
                return _examine_signatures(connection, piece)
            case _:
                return _examine_leaves(connection, piece)
    finally:
        connection.close()


def _within(piece: Piece) -> str:
    conditions = [f"r.id >= {piece.first:d}", f"r.id < {piece.past:d}"]
    if piece.since:
        conditions.append(f"r.at >= '{time_text(piece.since)}'")
    if piece.until:
        conditions.append(f"r.at < '{time_text(piece.until)}'")
    return " AND ".join(conditions)


def _examine_records(connection: Any, piece: Piece) -> Seen:
    suspects: list[Suspect] = []
    writers: dict[bytes, tuple[int, int, int, int]] = {}
    ids: set[int] = set()
    rows, twice, width = 0, [], _ROW.size
    sha256 = hashlib.sha256
    for row in _rows(connection, f"{_RECORDS} WHERE {_within(piece)}"):
        _, _, number, _, seq, _, own, _, mac, _, sealed, _, differs, _, _, _, writer, _, count = _ROW.unpack_from(row)
        rows += 1
        if number in ids:
            twice.append(number)
        ids.add(number)
        if count >= 0:
            had = writers.get(writer)
            writers[writer] = (
                (had[0] + 1, min(had[1], count), max(had[2], count), had[3] + count)
                if had
                else (1, count, count, count)
            )
        computed = sha256(b"\0" + row[width:]).digest()
        if computed != own and _NULLS:
            computed = _older(row[width:], (own, sealed), computed)
        fits = not piece.mac_keys or _mac_fits(piece.mac_keys, computed, writer, count, mac)
        if computed == own == sealed and fits and not differs and seq >= 0:
            continue
        if len(suspects) < _KEPT:
            suspects.append(_suspect(row, number, seq, computed, own, sealed, differs, fits))
    return Seen(rows=rows, suspects=tuple(suspects), twice=tuple(twice), writers=writers)


def _older(fields: bytes, leaves: tuple[bytes, ...], newest: bytes) -> bytes:
    """The leaf of a record of a time with fewer columns, where that is what was sealed."""
    for later in _NULLS.values():
        if fields.endswith(later):
            leaf = hashlib.sha256(b"\0" + fields[: -len(later)]).digest()
            if leaf in leaves:
                return leaf
    return newest


def _mac_fits(keys: Sequence[bytes], leaf: bytes, writer: bytes, count: int, mac: bytes) -> bool:
    message = leaf + writer + (_BIGINT.pack(count) if count >= 0 else b"")
    return any(hmac.compare_digest(hmac.digest(key, message, "sha256"), mac) for key in keys)


def _suspect(
    row: bytes, number: int, seq: int, computed: bytes, own: bytes, sealed: bytes, differs: bool, fits: bool
) -> Suspect:
    fields = _split(row[_ROW.size :])
    guess = None
    if seq >= 0 and computed != sealed:
        guess = _guess(fields, sealed, _ROW.unpack_from(row)[14])
    at = _moment_of(_BIGINT.unpack(fields[1] or bytes(8))[0])
    rid = str(UUID(bytes=fields[0])) if fields[0] else ""
    there = seq >= 0
    return Suspect(number, rid, at, seq if there else None, computed, own, sealed, there and differs, fits, guess)


def _moment_of(microseconds: int) -> datetime:
    """The time of PostgreSQL, or the last or first that there is: it knows infinite ones."""
    try:
        return _EPOCH + microseconds * _MICROSECOND
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if microseconds > 0 else datetime.min.replace(tzinfo=UTC)


def _split(row: bytes) -> list[bytes | None]:
    fields: list[bytes | None] = []
    place = 0
    while place < len(row):
        (length,) = _LENGTH.unpack_from(row, place)
        place += 4
        fields.append(None if length < 0 else row[place : place + length])
        place += max(length, 0)
    return fields


def _guess(fields: list[bytes | None], wanted: bytes, sealed_at: int) -> str | None:
    """The column that was changed, where another value of it makes the leaf that was sealed."""
    for place, (name, _) in enumerate(COLUMNS):
        values: list[bytes | None] = [None, *(str.encode(each) for each in _SAY_LITTLE.get(name, ()) if each)]
        if name == "at":
            values = [_BIGINT.pack(sealed_at)]
        for value in values:
            tried = [*fields[:place], value, *fields[place + 1 :]]
            if value != fields[place] and wanted in leaves_of(tried):
                return f"column {name} was {_plain(name, value)}"
    return None


def _plain(name: str, value: bytes | None) -> str:
    if value is None:
        return "NULL"
    return time_text(_moment_of(_BIGINT.unpack(value)[0])) if name == "at" else value.decode()


def _examine_signatures(connection: Any, piece: Piece) -> Seen:
    trust = Trust((), piece.vkeys)
    found: dict[int, tuple[tuple[str, ...], str | None]] = {}
    counts: dict[tuple[str, ...], int] = {}
    query = "SELECT number, note FROM audit_head WHERE number >= %s AND number < %s ORDER BY number"
    for number, text in connection.cursor().stream(query, (piece.first, piece.past)):
        try:
            signed, fault = _signed(text, trust)
        except NoteError as error:
            signed, fault = [], str(error)
        found[number] = (tuple(signed), fault)
        counts[tuple(signed)] = counts.get(tuple(signed), 0) + 1
    usual = max(counts, key=lambda each: counts[each], default=())
    others = {number: each for number, each in found.items() if each != (usual, None)}
    return Seen(rows=len(found), usual=usual, others=others)


def _signed(text: str, trust: Trust) -> tuple[list[str], str | None]:
    note = parse_note(text)
    return signers_of(note, parse_head(note.text), trust)


def _examine_leaves(connection: Any, piece: Piece) -> Seen:
    """The leaves whose record is not there."""
    missing: list[tuple[int, int, bytes]] = []
    missed, expired = 0, dict[str, int]()
    query = (
        f"SELECT l.seq, l.record_id, l.at, l.leaf FROM audit_leaf l WHERE l.seq >= {piece.first:d}"  # noqa: S608 - numbers
        f" AND l.seq < {piece.past:d} AND NOT EXISTS (SELECT FROM audit_record r WHERE r.id = l.record_id)"
    )
    for row in _rows(connection, query):
        _, _, seq, _, record, _, _, _, leaf = _LEAF.unpack_from(row)
        gap = next((each for each in piece.gaps if each.holds(seq)), None)
        if gap:
            expired[gap.month] = expired.get(gap.month, 0) + 1
            continue
        missed += 1
        if len(missing) < _KEPT:
            missing.append((seq, record, leaf))
    return Seen(missing=tuple(missing), missed=missed, expired=expired)


# --- The database: the tree -------------------------------------------------------------------------------------------


class Walk:
    """Rebuilds the tree from its leaves and compares it with every head and node on the way; needs little memory.

    Where a head does not fit, it is found out what was changed: leaves are replaced by what the records say, or put in
    the order of these, and what fits the signed root is right.
    """

    def __init__(self, database: Database, start: Tree, report: Report) -> None:
        self._database, self._report = database, report
        self._blocks = Tree(start.size >> 8 << 8, start.peaks[: (start.size >> 8).bit_count()])
        self._rest = Tree(start.size & 255, start.peaks[(start.size >> 8).bit_count() :])
        self._leaves = database.leaves(start.size)
        self._nodes = database.nodes(start.size)
        self._next_leaf: tuple[int, int, bytes] | None = next(self._leaves, None)
        self._next_node = next(self._nodes, None)
        self._wrong_nodes: list[tuple[str, str, int, int]] = []
        self._holes: list[tuple[int, int]] = []
        self._lost_since: int | None = None
        # What the tree says of leaves whose rows were changed; None where it cannot be known.
        self.true_leaves: dict[int, bytes | None] = {}
        self.late = 0
        self.first_late: int | None = None

    @property
    def size(self) -> int:
        """How many leaves were taken."""
        return self._blocks.size + self._rest.size

    @property
    def root(self) -> bytes:
        """Over all of them."""
        return Tree(self.size, [*self._blocks.peaks, *self._rest.peaks]).root

    def reach(self, head: Head) -> None:
        """Go on to the head's size, and compare."""
        before = (self._blocks.copy(), self._rest.copy())
        if head.size < self.size:
            return  # sizes that shrink were reported with the heads
        self._advance(head)
        if self.root == head.root:
            self._report_nodes()
            self._lost_since = None
            return
        self._repair(*before, head)

    def _advance(self, head: Head) -> None:
        sealed = (head.sealed_at - _EPOCH) // _MICROSECOND
        while self.size < head.size:
            row = self._next_leaf
            if row is None or row[0] >= head.size:
                self._fill_hole(head.size)
                return
            seq, at, leaf = row
            self._next_leaf = next(self._leaves, None)
            if seq > self.size:
                self._fill_hole(seq)
            if sealed - at > _LATE_US:
                self.late += 1
                self.first_late = seq if self.first_late is None else self.first_late
            self._append(leaf)

    def _fill_hole(self, past: int) -> None:
        self._holes.append((self.size, past))
        while self.size < past:
            self._append(bytes(32))

    def _append(self, leaf: bytes) -> None:
        self._rest.append(leaf)
        if self._rest.size == 256:
            self._append_block(self._rest.root)

    def _append_block(self, root: bytes) -> None:
        made = self._blocks.append_subtree(8, root)
        self._rest = Tree()
        for height, hashed in made:
            if height % 8 == 0:
                self._compare_node(height, (self._blocks.size >> height) - 1, hashed)

    def _compare_node(self, height: int, index: int, hashed: bytes) -> None:
        end = self._blocks.size
        while self._next_node and (self._next_node[0], self._next_node[1]) < (end, height):
            _, other, place, _ = self._next_node
            self._wrong_nodes.append((INSERTED, "the node has no place in the tree", other, place))
            self._next_node = next(self._nodes, None)
        if self._next_node is None or self._next_node[:3] != (end, height, index):
            self._wrong_nodes.append((MISSING, "the node is not there", height, index))
            return
        if self._next_node[3] != hashed:
            self._wrong_nodes.append((MODIFIED, "the node is not the root of its leaves", height, index))
        self._next_node = next(self._nodes, None)

    def _report_nodes(self) -> None:
        for verdict, what, height, index in self._wrong_nodes:
            self._report.find(verdict, what, table="audit_node", height=height, index=index)
        self._wrong_nodes.clear()

    def _repair(self, blocks: Tree, rest: Tree, head: Head) -> None:
        first = blocks.size + rest.size
        holes, self._holes, self._wrong_nodes = self._holes, [], []
        if self._lost_since is not None:
            self._find_the_way_again(head)
            return
        if head.size - first > 4 * _ROWS_A_PIECE:
            self._lose(first, head, holes)
            return
        span = self._database.span(first, head.size)
        for repaired in span.repairs():
            trial = _grown(blocks, rest, repaired.leaves)
            if trial.root == head.root:
                self._blame(span, repaired)
                self._go_on_with(blocks, rest, repaired.leaves)
                return
        self._lose(first, head, holes, reordered=span.out_of_order)

    def _blame(self, span: Span, repaired: Repair) -> None:
        for seq, true in zip(range(span.first, span.past), repaired.leaves, strict=True):
            row = span.rows.get(seq)
            if row is None:
                self.true_leaves[seq] = true
                what = "the leaf's row is not there, its record is" if repaired.by == "records" else "the leaf is gone"
                self._report.find(MISSING, what, table="audit_leaf", seq=seq)
            elif row.leaf != true:
                self.true_leaves[seq] = true
                verdict = REORDERED if repaired.by == "order" else MODIFIED
                what = (
                    "the leaf stands in another place" if repaired.by == "order" else "the leaf is not what was sealed"
                )
                self._report.find(verdict, what, table="audit_leaf", seq=seq, record=row.record, column="leaf")

    def _go_on_with(self, blocks: Tree, rest: Tree, leaves: Sequence[bytes]) -> None:
        start = blocks.size + rest.size
        self._blocks, self._rest = blocks.copy(), rest.copy()
        self._nodes.close()
        self._nodes = self._database.nodes(start)
        self._next_node = next(self._nodes, None)
        for leaf in leaves:
            self._append(leaf)
        self._report_nodes()

    def _lose(self, first: int, head: Head, holes: list[tuple[int, int]], reordered: bool = False) -> None:
        for start, past in holes:
            self._report.find(
                MISSING, "leaves are not there", past - start, table="audit_leaf", seq=_range(start, past)
            )
            for seq in range(start, min(past, start + _KEPT)):
                self.true_leaves[seq] = None
        self._lost_since = first
        if not holes:
            verdict = REORDERED if reordered else MODIFIED
            what = "the leaves are not those that the head was signed over"
            self._report.find(verdict, what, table="audit_leaf", seq=_range(first, head.size), head=head.number)
            for seq in range(first, min(head.size, first + _KEPT)):
                self.true_leaves[seq] = None

    def _find_the_way_again(self, head: Head) -> None:
        """After a place that could not be repaired: go on from what nodes say, if the head agrees."""
        border = head.size >> 8 << 8
        peaks = self._database.peaks(border)
        if peaks is None:
            return
        trial = Tree(border, peaks)
        rest = Tree()
        for _, _, leaf in self._database.rows(border, head.size):
            rest.append(leaf)
        if border + rest.size == head.size and Tree(head.size, [*trial.peaks, *rest.peaks]).root == head.root:
            self._blocks, self._rest, self._lost_since = trial, rest, None


def _grown(blocks: Tree, rest: Tree, leaves: Iterable[bytes]) -> Tree:
    tree = Tree(blocks.size + rest.size, [*blocks.peaks, *rest.peaks])
    for leaf in leaves:
        tree.append(leaf)
    return tree


def _range(first: int, past: int) -> int | str:
    return first if past - first == 1 else f"{first}-{past - 1}"


class SpanRow(NamedTuple):
    """A leaf's row, and the leaf that its record would have now."""

    record: int
    leaf: bytes
    computed: bytes | None


class Repair(NamedTuple):
    """Leaves as they may have been, and what they follow from: `records` or `order`."""

    by: str
    leaves: list[bytes]


class Span(NamedTuple):
    """The leaves between two heads of which the second does not fit. `spare` are records without a leaf, by id."""

    first: int
    past: int
    rows: dict[int, SpanRow]
    spare: list[tuple[int, bytes]]

    @property
    def out_of_order(self) -> bool:
        """Whether the rows agree with their records and stand in another order than these."""
        rows = [self.rows[seq] for seq in sorted(self.rows)]
        ids = [row.record for row in rows]
        return all(row.computed in (None, row.leaf) for row in rows) and ids != sorted(ids)

    def repairs(self) -> Iterator[Repair]:
        """What may have been sealed, the most probable first."""
        by_records = self._with_spare({seq: row.computed or row.leaf for seq, row in self.rows.items()})
        if by_records:
            yield Repair("records", by_records)
        as_they_are = self._with_spare({seq: row.leaf for seq, row in self.rows.items()})
        if as_they_are:
            yield Repair("records", as_they_are)
        if len(self.rows) == self.past - self.first:
            rows = sorted(self.rows.values(), key=lambda each: each.record)
            yield Repair("order", [row.leaf for row in rows])
            yield Repair("order", [row.computed or row.leaf for row in rows])
            yield from self._swapped()

    def _swapped(self) -> Iterator[Repair]:
        leaves = [self.rows[seq].leaf for seq in range(self.first, self.past)]
        if len(leaves) > 64:
            return
        for one in range(len(leaves)):
            for other in range(one + 1, len(leaves)):
                swapped = leaves.copy()
                swapped[one], swapped[other] = leaves[other], leaves[one]
                yield Repair("order", swapped)

    def _with_spare(self, leaves: dict[int, bytes]) -> list[bytes] | None:
        """All leaves of the span, with records that have none in the holes; None when there are too few of these."""
        holes = [seq for seq in range(self.first, self.past) if seq not in leaves]
        if not holes:
            return [leaves[seq] for seq in range(self.first, self.past)]
        spare = [leaf for number, leaf in self.spare if self._between(holes, number)]
        if len(spare) != len(holes):
            return None
        filled = leaves | dict(zip(holes, spare, strict=True))
        return [filled[seq] for seq in range(self.first, self.past)]

    def _between(self, holes: list[int], number: int) -> bool:
        """Whether a record of this number could fill one of the holes: ids mostly rise with their places."""
        below = [row.record for seq, row in self.rows.items() if seq < holes[0]]
        above = [row.record for seq, row in self.rows.items() if seq > holes[-1]]
        return max(below, default=-1) < number < min(above, default=_MOST)


# --- The database: where things are -----------------------------------------------------------------------------------


# A time that Python does not know, such as `infinity`, comes as NULL: no head says that.
_HEAD_COLUMNS = (
    "number, size, root, previous,"
    " CASE WHEN sealed_at BETWEEN '1000-01-01' AND '9999-01-01' THEN sealed_at END, low_water, note"
)


class HeadRow(NamedTuple):
    """A row of `audit_head`."""

    number: int
    size: int
    root: bytes
    previous: bytes
    sealed_at: datetime | None
    low_water: int
    note: str


class Database:
    """One state of the ledger's tables. Each stream of rows has a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = _connect(url)
        self.snapshot = str(self.value("SELECT pg_export_snapshot()"))
        self._check_columns()

    def close(self) -> None:
        """Let the state go."""
        self._connection.close()

    def value(self, query: str, *values: Any) -> Any:
        """The first value of the first row; None without one."""
        row = self._connection.execute(query, values).fetchone()
        return row[0] if row else None

    def all(self, query: str, *values: Any) -> list[Any]:
        """All rows, of what is known to be little."""
        return list(self._connection.execute(query, values).fetchall())

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        return self.value("SELECT to_regclass(%s) IS NOT NULL", table) is True

    def heads(self, first: int, last: int) -> Iterator[HeadRow]:
        """The heads, in the order of their numbers."""
        query = f"SELECT {_HEAD_COLUMNS} FROM audit_head WHERE number BETWEEN %s AND %s ORDER BY number"  # noqa: S608
        connection = _connect(self.url, self.snapshot)
        try:
            for row in connection.cursor().stream(query, (first, last)):
                yield HeadRow(*row)
        finally:
            connection.close()

    def head(self, condition: str, *values: Any) -> HeadRow | None:
        """One head."""
        found = self.all(f"SELECT {_HEAD_COLUMNS} FROM audit_head {condition} LIMIT 1", *values)  # noqa: S608 - constants
        return HeadRow(*found[0]) if found else None

    def leaves(self, first: int) -> Iterator[tuple[int, int, bytes]]:
        """(seq, time, leaf) from a place on."""
        yield from self.rows(first, _MOST)

    def rows(self, first: int, past: int) -> Iterator[tuple[int, int, bytes]]:
        """(seq, time, leaf) of the leaves from `first` to before `past`."""
        query = (
            f"SELECT seq, record_id, at, {_FIXED.format('leaf')} FROM audit_leaf"  # noqa: S608 - numbers
            f" WHERE seq >= {first:d} AND seq < {past:d} ORDER BY seq"
        )
        for row in self._stream(query):
            _, _, seq, _, _, _, at, _, leaf = _LEAF.unpack_from(row)
            yield seq, at, leaf

    def nodes(self, size: int) -> Generator[tuple[int, int, int, bytes], None, None]:
        """(end, height, index, hash) of the nodes that end after `size` leaves, as they were made."""
        query = (
            "SELECT (index + 1) << height, height::bigint, index, hash FROM audit_node"  # noqa: S608 - a number
            f" WHERE index >= 0 AND index < 1::bigint << (62 - height) AND (index + 1) << height > {size:d}"
            " ORDER BY (index + 1) << height, height"
        )
        for row in self._stream(query):
            _, _, end, _, height, _, index, _, hashed = _LEAF.unpack_from(row)
            yield end, height, index, hashed

    def peaks(self, size: int) -> list[bytes] | None:
        """The peaks of the tree of so many leaves, as the nodes have them; a multiple of 256. None where they lack."""
        peaks: list[bytes] = []
        first = 0
        while first < size:
            height = (size - first).bit_length() - 1
            stored = height // 8 * 8
            width = height - stored
            found = self.all(
                "SELECT hash FROM audit_node WHERE height = %s AND index >= %s AND index < %s ORDER BY index",
                stored,
                first >> stored,
                (first >> stored) + (1 << width),
            )
            if len(found) != 1 << width:
                return None
            peaks.append(root_of(bytes(row[0]) for row in found))
            first += 1 << height
        return peaks

    def tree(self, size: int) -> Tree | None:
        """The tree of the first `size` leaves, as nodes and the last leaves have it."""
        border = size >> 8 << 8
        peaks = self.peaks(border)
        if peaks is None:
            return None
        tree = Tree(border, peaks)
        for _, _, leaf in self.rows(border, size):
            tree.append(leaf)
        return tree if tree.size == size else None

    def span(self, first: int, past: int) -> Span:
        """The leaves from `first` to before `past`, beside what their records say."""
        rows: dict[int, SpanRow] = {}
        query = f"{_RECORDS.replace('LEFT JOIN', 'RIGHT JOIN')} WHERE l.seq >= {first:d} AND l.seq < {past:d}"
        leaves = {seq: leaf for seq, _, leaf in self.rows(first, past)}
        listed = "SELECT seq, record_id FROM audit_leaf WHERE seq >= %s AND seq < %s"
        records = dict(self.all(listed, first, past))
        for row in self._stream(f"{query} AND r.id IS NOT NULL"):
            _, _, _, _, seq, _, own, _, _, _, sealed, *_ = _ROW.unpack_from(row)
            computed = hashlib.sha256(b"\0" + row[_ROW.size :]).digest()
            if computed != sealed:
                computed = _older(row[_ROW.size :], (own, sealed), computed)
            rows[seq] = SpanRow(records[seq], leaves[seq], computed)
        for seq, leaf in leaves.items():
            rows.setdefault(seq, SpanRow(records[seq], leaf, None))
        return Span(first, past, rows, self._spare(records.values()) if len(rows) < past - first else [])

    def _spare(self, ids: Iterable[int]) -> list[tuple[int, bytes]]:
        """Records around these that have no leaf."""
        known = sorted(ids)
        low, high = (known[0] - 1000, known[-1] + 1000) if known else (0, 1 << 62)
        query = f"{_RECORDS} WHERE l.seq IS NULL AND r.id BETWEEN {low:d} AND {high:d} ORDER BY r.id LIMIT 1000"
        found = []
        for row in self._stream(query):
            _, _, number, *_ = _ROW.unpack_from(row)
            found.append((number, hashlib.sha256(b"\0" + row[_ROW.size :]).digest()))
        return found

    def _stream(self, query: str) -> Iterator[bytes]:
        connection = _connect(self.url, self.snapshot)
        try:
            yield from _rows(connection, query)
        finally:
            connection.close()

    def _check_columns(self) -> None:
        query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('audit_record') AND attnum > 0"
        there = {name for (name,) in self.all(query)}
        missing = [name for name, _ in COLUMNS if name not in there]
        if not there:
            raise Unusable("The database has no table audit_record that this role may see: is it the right one?")
        if missing or not self.has("audit_head"):
            raise Unusable(
                f"The ledger is older than this program (it lacks {', '.join(missing) or 'audit_head'}):"
                " take verify.py from that installation."
            )


# --- The database: the whole of it ------------------------------------------------------------------------------------


class Options(NamedTuple):
    """What to verify, and with what. `mac_keys` only the installation itself has; `accepted` are numbers of breaks."""

    keys: tuple[str, ...] = ()
    witness: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    jobs: int = 1
    mac_keys: tuple[bytes, ...] = ()
    accepted: tuple[int, ...] = ()
    progress: Callable[[str, int, int], None] = lambda what, done, total: None


def _witness_of(options: Options) -> tuple[Witnessed | None, list[str]]:
    return read_witness(options.witness) if options.witness else (None, [])


class Verification:
    """One run over a database."""

    def __init__(self, database: Database, options: Options) -> None:
        self._database, self._options = database, options
        self.report = Report()
        self._witnessed, keys = _witness_of(options)
        found = (
            [vkey for (vkey,) in database.all("SELECT vkey FROM audit_key ORDER BY since, at")]
            if (database.has("audit_key"))
            else []
        )
        self._trust = Trust((*options.keys, *keys), found)
        self._found_keys = [key for key in found if key in self._trust.known]
        self._signers = Signers(self._trust, self.report)
        self._bad_heads: set[int] = set()
        self._breaks: list[Head] = []
        self._suspects: list[Suspect] = []
        self._missing: list[tuple[int, int, bytes]] = []
        self._missed = 0
        self._writers: dict[bytes, tuple[int, int, int, int]] = {}
        self._first, self._last = self._bounds()
        self._follow_keys()
        self._gaps = self._read_gaps()

    def run(self) -> Report:
        """Look at everything."""
        with _Workers(self._options.jobs) as workers:
            signatures = workers.start(self._pieces_of_heads(), examine)
            others = workers.start([*self._pieces_of_leaves(), *self._pieces_of_records()], examine)
            newest = self._check_heads(signatures)
            walk = self._walk(newest) if newest else None
            records = self._gather(others)
        self._settle(walk, newest)
        self._check_twice()
        self._check_writers()
        if self._witnessed:
            self._check_witness(self._witnessed)
        self._trust.explain(self.report, self._signers.used)
        self._check_keys()
        self._tell(records, newest)
        return self.report

    # Where to begin and to end

    def _bounds(self) -> tuple[HeadRow | None, HeadRow | None]:
        since, until, head = self._options.since, self._options.until, self._database.head
        first = head("WHERE sealed_at < %s ORDER BY number DESC", since) if since else None
        last = head("WHERE sealed_at >= %s ORDER BY number", until) if until else None
        return first, last or head("ORDER BY number DESC")

    @property
    def _begin(self) -> int:
        """The leaf to begin with."""
        return self._first.size if self._first else 0

    @property
    def _end(self) -> int:
        """The leaf to end before."""
        whole = self._options.until is None
        return _MOST if whole or self._last is None else self._last.size

    def _piece(self, sort: str, first: int, past: int) -> Piece:
        options = self._options
        return Piece(sort, first, past, self._database.url, self._database.snapshot, options.since, options.until)

    def _pieces_of_heads(self) -> Iterator[Piece]:
        if self._last is None:
            return
        known = tuple(str(key) for key in self._trust.known.values())
        first, last = self._first.number if self._first else _LEAST, self._last.number
        for start, past in self._cuts("audit_head", "number", _HEADS_A_PIECE, first, last + 1):
            yield self._piece("signatures", start, past)._replace(vkeys=known)

    def _cuts(self, table: str, column: str, size: int, first: int, past: int) -> Iterator[tuple[int, int]]:
        """Ranges of the column with so many rows each, whatever numbers there are."""
        query = (
            f"SELECT max({column}), count(*) FROM"  # noqa: S608 - constants
            f" (SELECT {column} FROM {table} WHERE {column} >= %s AND {column} < %s ORDER BY {column} LIMIT %s) AS cut"
        )
        while True:
            last, count = self._database.all(query, first, past, size)[0]
            if count:
                yield first, last + 1
            if count < size:
                return
            first = last + 1

    def _pieces_of_records(self) -> Iterator[Piece]:
        for first, past in self._cuts("audit_record", "id", _ROWS_A_PIECE, _LEAST, _MOST):
            yield self._piece("records", first, past)._replace(mac_keys=self._options.mac_keys)

    def _pieces_of_leaves(self) -> Iterator[Piece]:
        for first, past in self._cuts("audit_leaf", "seq", 10 * _ROWS_A_PIECE, self._begin, self._end):
            yield self._piece("leaves", first, past)._replace(gaps=self._gaps)

    def _read_gaps(self) -> tuple[Gap, ...]:
        if not self._database.has("audit_gap"):
            return ()
        query = "SELECT g.id, g.body, s.note FROM audit_gap g LEFT JOIN audit_signature s ON s.request = g.request"
        if self._database.has("audit_gap_withdrawal"):
            query += " WHERE NOT EXISTS (SELECT FROM audit_gap_withdrawal w WHERE w.gap = g.id)"
        found = (
            read_gap(self.report, body, note, self._trust, str(number))
            for number, body, note in self._database.all(f"{query} ORDER BY g.id")
        )
        return tuple(each for each in found if each)

    # Heads

    def _check_heads(self, pieces: Iterator[Seen]) -> HeadRow | None:
        """The chain of heads; returns the newest one that is good."""
        if self._last is None:
            if self._database.value("SELECT EXISTS (SELECT FROM audit_leaf)"):
                self.report.find(MISSING, "there are leaves, and no head")
            return None
        chain = _Chain(self.report, self._first is None)
        signed = _Signed(pieces)
        total = self._last.number + 1 - (self._first.number if self._first else 0)
        good, done = None, 0
        for row in self._database.heads(self._first.number if self._first else _LEAST, self._last.number):
            done += 1
            if done % 1000 == 0:
                self._options.progress("heads", done, total)
            if self._check_head(row, chain, *signed.of(row.number)):
                good = row
            else:
                self._bad_heads.add(row.number)
        self.report.facts["heads"] = done
        return good

    def _follow_keys(self) -> None:
        """The succession of keys from the first head on, and all breaks; what is wrong before our part is told."""
        query = (
            "SELECT number, note FROM audit_head WHERE number = 0 OR note LIKE '%%\nsuccessor %%'"
            " OR note LIKE '%%\nbreak %%' ORDER BY number"
        )
        whole = Signers(self._trust, Report())
        for number, text in self._database.all(query):
            try:
                note = parse_note(text)
                head = parse_head(note.text)
                signed, fault = signers_of(note, head, self._trust)
                if whole.check(head, note, signed, fault) and head.broken is not None:
                    self._breaks.append(head)
                if self._first is not None and number < self._first.number:
                    self._signers.check(head, note, signed, fault)
            except NoteError:
                continue  # it is reported when its turn comes, or its successor is none

    def _check_keys(self) -> None:
        for key in self._found_keys:
            if key not in self._trust.proven:
                what = "the key signed no head, and no key that did names it as its successor"
                self.report.find(INSERTED, what, table="audit_key", key=_id(key))

    def _check_head(self, row: HeadRow, chain: _Chain, signed: Sequence[str], fault: str | None) -> bool:
        try:
            note = parse_note(row.note)
            head = parse_head(note.text)
        except NoteError as error:
            self.report.find(MODIFIED, f"the head's note cannot be read: {error}", head=row.number, column="note")
            chain.skip(row.number)
            return False
        if not self._signers.check(head, note, signed, fault):
            chain.skip(row.number)
            return False
        for name in ("number", "size", "root", "previous", "sealed_at"):
            said, stored = getattr(head, name), getattr(row, name)
            if said != (bytes(stored) if isinstance(said, bytes) else stored):
                self.report.find(MODIFIED, "the column is not what the note says", head=row.number, column=name)
        chain.follow(row.number, head, row.low_water)
        if head.broken is not None:
            self.report.note(f"Head {head.number} accepts that an older state was restored: {head.broken}")
        return True

    def _walk(self, newest: HeadRow) -> Walk:
        start = self._start()
        walk = Walk(self._database, start, self.report)
        goal = self._last.size if self._last else 0
        first = self._first.number if self._first else _LEAST
        for row in self._database.heads(first, self._last.number if self._last else 0):
            if row.number in self._bad_heads:
                continue
            walk.reach(parse_head(parse_note(row.note).text))
            self._options.progress("leaves", walk.size, goal)
        self._check_rest(walk, newest)
        return walk

    def _start(self) -> Tree:
        if self._first is None or self._first.size == 0:
            return Tree()
        tree = self._database.tree(self._first.size)
        if tree is None or tree.root != bytes(self._first.root):
            what = "nodes and leaves do not make the root of the head to begin with; verify all, without --since"
            self.report.find(MODIFIED, what, head=self._first.number)
        return tree or Tree(self._first.size, [bytes(32)] * self._first.size.bit_count())

    def _check_rest(self, walk: Walk, newest: HeadRow) -> None:
        """What no head covers, unless the heads after the newest good one were changed: then these are to blame."""
        if self._options.until is not None or max(self._bad_heads, default=-1) > newest.number:
            return
        for seq, record in self._database.all(
            "SELECT seq, record_id FROM audit_leaf WHERE seq >= %s OR seq < 0 ORDER BY seq LIMIT 1000", walk.size
        ):
            self.report.find(INSERTED, "no head was signed over the leaf", table="audit_leaf", seq=seq, record=record)
        query = (
            "SELECT height, index FROM audit_node WHERE index < 0 OR (index + 1)::numeric * 2 ^ height > %s LIMIT 1000"
        )
        for height, index in self._database.all(query, walk.size):
            self.report.find(
                INSERTED, "no head was signed over the node", table="audit_node", height=height, index=index
            )
        if walk.late:
            what = "were sealed more than a minute after the time that they tell, as they are when PostgreSQL was away"
            self.report.note(f"{walk.late:,} records {what}; the first is seq {walk.first_late}.")

    # Records

    def _gather(self, pieces: Iterator[Seen]) -> int:
        total = self._database.value("SELECT count(*) FROM audit_leaf") or 0
        records = 0
        for seen in pieces:
            records += seen.rows
            self._suspects += seen.suspects
            self._missing += seen.missing
            self._missed += seen.missed
            for month, count in seen.expired.items():
                self.report.find(EXPIRED, "records left under a certificate", count, month=month, records=count)
            for number in seen.twice:
                self.report.find(INSERTED, "two records have the same number", record=number)
            for writer, (count, first, last, sum_) in seen.writers.items():
                had = self._writers.get(writer, (0, first, last, 0))
                merged = (had[0] + count, min(had[1], first), max(had[2], last), had[3] + sum_)
                self._writers[writer] = merged
            self._options.progress("records", records, max(total, records))
        return records

    def _settle(self, walk: Walk | None, newest: HeadRow | None) -> None:
        """Tell what happened to the records that do not fit."""
        gone = {leaf: (seq, record) for seq, record, leaf in self._missing}
        wanted = {each.sealed_leaf: each for each in self._suspects if each.seq is not None}
        moved: set[int] = set()
        unsealed = []
        for each in self._suspects:
            if each.seq is not None:
                self._settle_sealed(each, wanted, walk)
            elif each.computed in gone:
                seq, record = gone[each.computed]
                moved.add(seq)
                what = f"the record belongs to the leaf {seq}, which names the record {record}"
                self.report.find(MODIFIED, what, record=each.id, rid=each.rid, seq=seq, column="id")
            elif not (walk and each.computed in walk.true_leaves.values()):
                unsealed.append(each)
        self._settle_unsealed(unsealed, newest)
        for seq, record, _ in self._missing:
            if seq not in moved:
                self.report.find(MISSING, "the record is not there, its leaf is", record=record, seq=seq)
        rest = self._missed - len(self._missing)
        if rest:
            self.report.find(MISSING, "further records are not there", rest)

    def _settle_sealed(self, each: Suspect, wanted: Mapping[bytes, Suspect], walk: Walk | None) -> None:
        place: dict[str, Any] = {"record": each.id, "rid": each.rid, "seq": each.seq}
        true = walk.true_leaves.get(each.seq or 0, each.sealed_leaf) if walk else each.sealed_leaf
        if each.computed == true and each.own_leaf == true and each.sealed_leaf != true:
            return  # the leaf's row was changed, which is reported there
        other = wanted.get(each.computed)
        if each.computed != each.sealed_leaf and other is not None and other.id != each.id:
            what = f"the record stands in the place of another: it belongs to seq {other.seq}"
            self.report.find(REORDERED, what, **place)
        elif each.computed != each.sealed_leaf:
            what = f"the record is not what was sealed{f': {each.guess}' if each.guess else ''}"
            column = each.guess.split()[1] if each.guess else None
            self.report.find(MODIFIED, what, **place, column=column)
        elif each.own_leaf != each.computed:
            self.report.find(MODIFIED, "the record's column leaf is not its leaf", **place, column="leaf")
        elif each.sealed_time_differs:
            what = "the time of the leaf's row is not the record's"
            self.report.find(MODIFIED, what, **place, table="audit_leaf", column="at")
        elif not each.mac_fits:
            self.report.find(MODIFIED, "the MAC is not of a key of this installation", **place, column="mac")

    def _settle_unsealed(self, suspects: list[Suspect], newest: HeadRow | None) -> None:
        now, minute = datetime.now(UTC), timedelta(seconds=_OLD_SECONDS)
        passed = newest.low_water if newest else 0
        refused = (
            dict(self._database.all("SELECT record_id, reason FROM audit_refused"))
            if (suspects and self._database.has("audit_refused"))
            else {}
        )
        # Whoever inserts a record can give it any time, and so a time that is still to come.
        old = [e for e in suspects if abs(now - e.at) > minute or e.id in refused or e.id <= passed]
        still = self._still_unsealed([each.id for each in old]) if old else set()
        for each in old:
            if each.id in still:
                self._settle_old(each, newest, refused.get(each.id))
        if len(suspects) > len(old):
            self.report.note(f"{len(suspects) - len(old):,} records of the last minute are not sealed yet.")

    def _settle_old(self, each: Suspect, newest: HeadRow | None, reason: str | None) -> None:
        place: dict[str, Any] = {"record": each.id, "rid": each.rid}
        if each.computed != each.own_leaf or reason == "changed":
            what = "the record was changed before it was sealed, and is not sealed for that"
            self.report.find(MODIFIED, what, **place)
        elif not each.mac_fits or reason == "forged":
            self.report.find(INSERTED, "the record was not written by this installation: its MAC is of no key", **place)
        elif newest is not None and each.id <= newest.low_water:
            what = "the record appeared where the sealer had passed, or its leaf was taken away"
            self.report.find(INSERTED, what, **place)
        else:
            what = f"the record of {_time(each.at)} is not sealed: does the sealer run?"
            self.report.find(UNSEALED_OLD, what, **place)

    def _still_unsealed(self, ids: list[int]) -> set[int]:
        """Those that a sealer at work does not seal within three seconds: what comes from a spool is old by then."""
        query = "SELECT id FROM unnest(%s::bigint[]) AS wanted (id) WHERE id NOT IN (SELECT record_id FROM audit_leaf)"
        connection = _connect(self._database.url)
        try:
            connection.execute("COMMIT")
            alive = "SELECT max(sealed_at) > now() - interval '2 minutes' FROM audit_head"
            if connection.execute(alive).fetchone()[0]:
                time.sleep(3)
            return {row[0] for row in connection.execute(query, (ids,)).fetchall()}
        finally:
            connection.close()

    def _check_twice(self) -> None:
        conditions = _within(self._piece("", _LEAST, _MOST))
        query = f"SELECT r.rid::text, count(*) FROM audit_record r WHERE {conditions}"  # noqa: S608 - numbers and times
        for rid, count in self._database.all(f"{query} GROUP BY r.rid HAVING count(*) > 1 LIMIT 1000"):
            self.report.find(INSERTED, f"{count} records have the same id", count - 1, rid=rid)

    def _check_writers(self) -> None:
        begun = self._options.since is None
        looked_at = 0
        for writer, (count, first, last, sum_) in self._writers.items():
            dense = count == last - first + 1 and sum_ == (first + last) * count // 2
            if dense and (first == 1 or not begun):
                continue
            looked_at += 1
            if looked_at <= 50:
                self._check_writer(UUID(bytes=writer))
            else:
                self.report.find(MISSING, "the numbers of the writer have gaps", writer=str(UUID(bytes=writer)))

    def _check_writer(self, writer: UUID) -> None:
        scope = _within(self._piece("", _LEAST, _MOST))
        query = f"""
            SELECT * FROM (
                SELECT writer_seq, id, lag(writer_seq) OVER (ORDER BY writer_seq, id) AS before,
                       lag(id) OVER (ORDER BY writer_seq, id) AS before_id
                FROM audit_record r WHERE writer_id = %s AND writer_seq IS NOT NULL AND {scope}
            ) AS numbered WHERE before IS DISTINCT FROM writer_seq - 1 LIMIT 1000
            """  # noqa: S608 - numbers and times
        for count, record, before, before_id in self._database.all(query, writer):
            if before == count:
                what = f"two records are number {count} of the writer"
                if not self._is_suspect(record, before_id):
                    self.report.find(INSERTED, what, record=record, writer=str(writer))
                continue
            if before is None and (count == 1 or self._options.since is not None):
                continue
            lacking = count - (before or 0) - 1
            if lacking > self._explained(before_id or 0, record):
                place = _range((before or 0) + 1, count)
                what = f"records number {place} of the writer are not there"
                self.report.find(MISSING, what, lacking, writer=str(writer), before_record=record)

    def _is_suspect(self, *ids: int) -> bool:
        return any(each.id in ids for each in self._suspects)

    def _explained(self, after: int, before: int) -> int:
        """How many records between two ids are known to lack, or not to be what they were."""
        query = (
            "SELECT count(*) FROM audit_leaf l WHERE record_id > %s AND record_id < %s"
            " AND NOT EXISTS (SELECT FROM audit_record r WHERE r.id = l.record_id)"
        )
        changed = (each for each in self._suspects if each.seq is not None or each.computed != each.own_leaf)
        suspects = sum(1 for each in changed if after <= each.id <= before)
        return int(self._database.value(query, after, before)) + suspects

    # The witness, and the end

    def _check_witness(self, kept: Witnessed) -> None:
        row = self._database.head("WHERE number = %s", kept.head.number)
        found = None
        if row is not None:
            try:
                found = parse_head(parse_note(row.note).text)
            except NoteError:
                return  # reported with the heads
        newest = self._database.value("SELECT max(number) FROM audit_head")
        breaks = Breaks(self._breaks, self._options.accepted)
        check_witnessed(self.report, kept, found, newest, self._trust, self._signers.origin, breaks)

    def _check_cosignatures(self) -> int:
        if not self._trust.witnesses:
            return 0
        query = (
            "SELECT c.head, c.line, h.note FROM audit_cosignature c JOIN audit_head h ON h.number = c.head"
            " WHERE c.head BETWEEN %s AND %s"
        )
        first, last = self._first.number if self._first else 0, self._last.number if self._last else -1
        good = 0
        for number, line, text in self._database.all(query, first, last):
            try:
                note = parse_note(text)
                head = parse_head(note.text)
                signature = parse_signature(line.rstrip("\n"))
            except NoteError as error:
                self.report.find(MODIFIED, f"the cosignature cannot be read: {error}", head=number)
                continue
            good += check_cosignatures(self.report, head, Note(note.text, (signature,)), self._trust)
        return good

    def _tell(self, records: int, newest: HeadRow | None) -> None:
        facts = self.report.facts
        facts.update(records=records, leaves=(newest.size if newest else 0) - self._begin)
        if newest and newest.sealed_at:
            facts.update(newest_head=newest.number, sealed=_time(newest.sealed_at))
            age = datetime.now(UTC) - newest.sealed_at
            if age > timedelta(minutes=5) and self._options.until is None:
                minutes = age // timedelta(minutes=1)
                self.report.note(f"The newest head is {minutes:,} minutes old: the sealer does not run.")
        if self._trust.witnesses:
            facts["cosignatures"] = self._check_cosignatures()
        if not self._witnessed:
            self.report.note(
                "No witness was asked (--witness): that the newest heads were cut off, or an older backup was"
                " restored, cannot be seen from the database alone."
            )


class _Chain:
    """Follows `previous`, numbers, sizes and times along the heads."""

    def __init__(self, report: Report, from_the_beginning: bool) -> None:
        self._report = report
        self._last: Head | None = None
        self._low_water = -1
        self._expected: int | None = 0 if from_the_beginning else None
        self._skipped = False

    def skip(self, number: int) -> None:
        """The head there is not to be believed."""
        self._count(number)
        self._skipped = True

    def follow(self, number: int, head: Head, low_water: int) -> None:
        """The next head, which is validly signed."""
        self._count(number)
        find, last = self._report.find, self._last
        if last is None:
            if number == 0 and head.previous != FIRST_PREVIOUS:
                find(MODIFIED, "the first head names a head before it", head=number)
        elif not self._skipped and head.previous != last.hash:
            find(ROLLED_BACK, f"the head does not continue head {last.number}", head=number)
        if last is not None and head.size < last.size:
            find(ROLLED_BACK, f"the head has {head.size} leaves, the one before has {last.size}", head=number)
        if last is not None and head.sealed_at < last.sealed_at:
            find(MODIFIED, "the head is older than the one before", head=number)
        if low_water < self._low_water:
            find(MODIFIED, "the column is less than that of the head before", head=number, column="low_water")
        self._last, self._low_water, self._skipped = head, max(low_water, self._low_water), False

    def _count(self, number: int) -> None:
        if self._expected is not None and number != self._expected:
            verdict = MISSING if number > self._expected else INSERTED
            lacking = max(number - self._expected, 1)
            place = _range(self._expected, number) if verdict == MISSING else number
            self._report.find(verdict, "the numbers of heads are not dense", lacking, head=place)
            self._skipped = True
        self._expected = number + 1


class _Signed:
    """Which known keys signed a head, from the pieces as they come."""

    def __init__(self, pieces: Iterator[Seen]) -> None:
        self._pieces = pieces
        self._usual: tuple[str, ...] = ()
        self._others: dict[int, tuple[tuple[str, ...], str | None]] = {}
        self._left = 0

    def of(self, number: int) -> tuple[tuple[str, ...], str | None]:
        """The keys, and what is wrong. Heads are asked for in order, each once."""
        while self._left == 0:
            seen = next(self._pieces)
            self._usual, self._others, self._left = seen.usual, seen.others, seen.rows
        self._left -= 1
        return self._others.get(number, (self._usual, None))


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Workers:
    """Does pieces one after the other, or in processes of their own."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool: Any = None

    def __enter__(self) -> _Workers:
        if self._jobs > 1:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(self._jobs, multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def start(self, items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
        """What comes out of the items, in their order."""
        if self._pool:
            futures = [self._pool.submit(work, item) for item in items]
            return (future.result() for future in futures)
        return map(work, items)


def verify_database(url: str, options: Options) -> Report:
    """Verify the ledger of a database, as a role that may read it. Raises Unusable."""
    database = Database(url)
    try:
        return Verification(database, options).run()
    finally:
        database.close()


# --- Exports ----------------------------------------------------------------------------------------------------------


class Box:
    """A folder, or an archive in the format zip, with the files of an export."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        if self._zip is None and not os.path.isdir(path):
            raise Unusable(f"{path} is neither a folder nor a zip archive")
        found = [name for name in self._all() if name.rpartition("/")[2] == "manifest.json"]
        if not found:
            raise Unusable(f"{path} holds no manifest.json: is it an export of the ledger?")
        self._prefix = min(found, key=len).removesuffix("manifest.json")

    def twice(self) -> list[str]:
        """The files that an archive holds more than once, of which programs show one or the other."""
        return sorted(name for name, count in Counter(self._all()).items() if count > 1)

    def names(self) -> set[str]:
        """The files beside and below the manifest."""
        return {name.removeprefix(self._prefix) for name in self._all() if name.startswith(self._prefix)}

    def open(self, name: str) -> Any:
        """A stream of bytes. Raises KeyError and OSError when there is no such file."""
        if self._zip:
            return self._zip.open(self._prefix + name)
        if os.path.isabs(name) or ".." in name.split("/"):
            raise KeyError(name)
        return open(os.path.join(self.path, self._prefix + name), "rb")

    def read(self, name: str) -> bytes | None:
        """A small file; None when it is not there."""
        if name not in self.names():
            return None
        with self.open(name) as stream:
            content: bytes = stream.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise Unusable(f"{name} is larger than {_LARGEST_FILE >> 20} MiB, which no export needs")
        return content

    def _all(self) -> list[str]:
        if self._zip:
            return [each.filename for each in self._zip.infolist() if not each.is_dir()]
        found = []
        for folder, _, names in os.walk(self.path):
            place = os.path.relpath(folder, self.path).replace(os.sep, "/")
            found += [name if place == "." else f"{place}/{name}" for name in names]
        return found


class Part(NamedTuple):
    """A file of an export to look at, and what the manifest says of it."""

    path: str
    name: str
    bytes: int
    sha256: str
    records: int


# KeyError and RuntimeError come from zipfile: no such file, and one that is encrypted or compressed as nobody knows.
_CANNOT_BE_UNPACKED = (KeyError, OSError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile)


class Line(NamedTuple):
    """A line that does not fit."""

    number: int
    verdict: str
    what: str
    seq: int | None
    id: int | None
    rid: str | None


class Looked(NamedTuple):
    """What came out of a part: the places and leaves of its records one after the other, and what does not fit."""

    name: str
    records: int = 0
    unsealed: int = 0
    seqs: array[int] = array("q")
    leaves: bytes = b""
    lines: tuple[Line, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()


def look_at_part(part: Part) -> Looked:
    """Check the file's size, hash and records."""
    box, digest, size = Box(part.path), hashlib.sha256(), 0
    try:
        with box.open(part.name) as stream:
            while size <= part.bytes and (block := stream.read(1 << 20)):
                digest.update(block)
                size += len(block)
    except _CANNOT_BE_UNPACKED as error:
        return Looked(part.name, faults=((MISSING, f"the file cannot be read: {error}"),))
    if (size, digest.hexdigest()) != (part.bytes, part.sha256):
        return Looked(part.name, faults=((MODIFIED, "the file is not the one that the manifest names"),))
    if not part.name.endswith(".jsonl.gz") or not part.name.rpartition("/")[2].startswith("records-"):
        return Looked(part.name)
    with box.open(part.name) as stream:
        return _look_at_lines(part, stream)


def _look_at_lines(part: Part, stream: Any) -> Looked:
    seqs, leaves, lines, unsealed = array("q"), bytearray(), list[Line](), 0
    number = 0
    try:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while number <= part.records and (line := unpacked.readline(_LONGEST_LINE + 1)):
                number += 1
                document, found = _look_at_record(number, line)
                lines += found[: _KEPT - len(lines)]
                if len(line) > _LONGEST_LINE:
                    break  # its rest would be taken for further lines
                if document is None or document["seq"] is None:
                    unsealed += document is not None
                    continue
                seqs.append(document["seq"])
                leaves += bytes.fromhex(document["leaf"])
    except _CANNOT_BE_UNPACKED as error:
        return Looked(part.name, faults=((MODIFIED, f"the file cannot be unpacked: {error}"),))
    counted = f"more than {part.records}" if number > part.records else str(number)
    faults = ((MODIFIED, f"{counted} records, not {part.records}"),) if number != part.records else ()
    return Looked(part.name, number, unsealed, seqs, bytes(leaves), tuple(lines), faults)


def _look_at_record(number: int, line: bytes) -> tuple[dict[str, Any] | None, list[Line]]:
    try:
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"it is longer than {_LONGEST_LINE >> 20} MiB")
        document = parse_json(line.decode())
        fault = check_record(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [Line(number, MODIFIED, f"the line is no record: {error}", None, None, None)]
    if fault is None:
        return document, []
    rid = document["record"].get("rid")
    return document, [Line(number, MODIFIED, fault, document["seq"], document.get("id"), rid)]


def check_record(document: Mapping[str, Any]) -> str | None:
    """What is wrong with a record as JSON. Raises ValueError, KeyError or TypeError when it is none."""
    fields, leaf, seq = fields_of(document["record"]), bytes.fromhex(document["leaf"]), document["seq"]
    if len(leaf) != 32 or not (seq is None or 0 <= _whole(seq) < _MOST):
        raise ValueError("leaf or seq is none")
    if unknown := document["record"].keys() - _NAMES:
        raise ValueError(f"its columns {sorted(unknown)!r:.200} are not known here, and no leaf covers them")
    if leaf in leaves_of(fields):
        return None
    guess = _guess(fields, leaf, 0)
    return f"the record is not what its leaf is over{f': {guess}' if guess else ''}"


def _is_csv(name: str) -> bool:
    return name.startswith("records-") and name.endswith(".csv")


class ExportCheck:
    """One run over an export."""

    def __init__(self, path: str, options: Options) -> None:
        self._box, self._options, self.report = Box(path), options, Report()
        self._manifest = _json((self._box.read("manifest.json") or b"").decode("utf-8", "replace"), "manifest.json")
        if self._manifest.get("format") != "mcpsite-export/1":
            raise Unusable(f"The manifest is of the format {self._manifest.get('format')!r}, which is not known here")
        found = (self._box.read("keys.txt") or b"").decode("utf-8", "replace").split()
        self._witnessed, keys = _witness_of(options)
        self._trust = Trust((*options.keys, *keys), found)
        self._signers = Signers(self._trust, self.report)
        self._heads: dict[int, Head] = {}

    def run(self) -> Report:
        """Look at everything."""
        heads = self._check_heads()
        self._check_manifest()
        for name in self._box.twice():
            self.report.find(INSERTED, "the archive holds the file more than once", file=name)
        looked = list(self._look())
        self._check_places(looked, heads)
        if self._witnessed:
            self._check_witness(self._witnessed)
        self._trust.explain(self.report, self._signers.used)
        return self.report

    def _check_witness(self, kept: Witnessed) -> None:
        """The export holds a few heads, and the ledger and its witness went on after it was made."""
        head, newest = kept.head, self._heads[max(self._heads)] if self._heads else None
        other = newest is not None and head.origin == newest.origin and head.number not in self._heads
        if newest is not None and other and (head.number < newest.number or head.sealed_at >= newest.sealed_at):
            self.report.note(
                f"The export does not hold head {head.number} of {_time(head.sealed_at)}, which the witness keeps;"
                f" its newest is {newest.number} of {_time(newest.sealed_at)}. Whether one continues the other is"
                " told by a consistency proof (verify.py consistency)."
            )
            return
        number, found = newest.number if newest else None, self._heads.get(head.number)
        how = Breaks([each for each in self._heads.values() if each.broken is not None], self._options.accepted)
        check_witnessed(self.report, kept, found, number, self._trust, self._signers.origin, how)

    def _check_manifest(self) -> None:
        note, purpose = self._box.read("manifest.sig"), str(self._manifest.get("purpose", "export"))
        try:
            if note is None:
                raise NoteError("there is no manifest.sig")
            content = self._box.read("manifest.json") or b""
            check_manifest(content, purpose, note.decode("utf-8", "replace"), self._trust)
        except NoteError as error:
            self.report.find(MODIFIED, f"the manifest is not what the sealer signed: {error}", file="manifest.json")

    def _check_heads(self) -> list[Head]:
        raw = (self._box.read("heads.jsonl") or b"").decode("utf-8", "replace")
        chain = _Chain(self.report, from_the_beginning=False)
        found: list[Head] = []
        for line in raw.splitlines():
            try:
                note = parse_note(parse_json(line)["note"])
                head = parse_head(note.text)
            except (ValueError, KeyError, TypeError) as error:
                self.report.find(MODIFIED, f"a head cannot be read: {error}", file="heads.jsonl")
                continue
            if not self._signers.check(head, note, *signers_of(note, head, self._trust)):
                continue
            if found and head.number != found[-1].number + 1:
                chain = _Chain(self.report, from_the_beginning=False)
                if head.size < found[-1].size:
                    self.report.find(ROLLED_BACK, "the head has fewer leaves than an earlier one", head=head.number)
            chain.follow(head.number, head, 0)
            found.append(head)
            self._heads[head.number] = head
        self.report.facts["heads"] = len(found)
        return found

    def _look(self) -> Iterator[Looked]:
        files = self._manifest.get("files")
        if not isinstance(files, list):
            raise Unusable("The manifest lists no files")
        parts = [
            Part(self._box.path, each["name"], each["bytes"], each["sha256"], each.get("records", 0)) for each in files
        ]
        others = self._box.names() - {each.name for each in parts} - {"manifest.json", "manifest.sig"}
        for name in sorted(others):
            self.report.find(INSERTED, "the manifest does not name the file", file=name)
        with _Workers(self._options.jobs) as workers:
            for place, looked in enumerate(workers.start(parts, look_at_part), 1):
                for verdict, what in looked.faults:
                    self.report.find(verdict, what, file=looked.name)
                for line in looked.lines:
                    place_of: dict[str, Any] = {
                        "file": looked.name,
                        "line": line.number,
                        "seq": line.seq,
                        "record": line.id,
                    }
                    self.report.find(line.verdict, line.what, **place_of, rid=line.rid)
                self._options.progress("files", place, len(parts))
                yield looked

    def _check_places(self, looked: Sequence[Looked], heads: Sequence[Head]) -> None:
        manifest, facts = self._manifest, self.report.facts
        count = sum(len(each.seqs) for each in looked)
        facts.update(records=sum(each.records for each in looked), unsealed=sum(each.unsealed for each in looked))
        if not facts["records"] and any(_is_csv(each["name"]) for each in manifest["files"]):
            self.report.note(
                "The records are CSV: their leaves cannot be recomputed. The files are those that were signed."
            )
            return
        if not manifest.get("complete"):
            self.report.note(
                "The export is a selection: each record is checked against its leaf, and the manifest's signature"
                " covers all of them. That a record is in the tree is shown by its proof (verify.py proof)."
            )
            return
        first, last = _whole(manifest["first_seq"]), _whole(manifest["last_seq"])
        if not 0 <= first <= last < first + _MOST_PLACES:
            raise Unusable("The manifest names a range that cannot be")
        places, seen = last - first + 1, bytearray((last - first + 8) // 8)
        # What the manifest says of itself must not be able to take the memory of whoever looks at it.
        leaves = bytearray(32 * places if first == 0 and count >= places else 0)
        for each in looked:
            for number, seq in enumerate(each.seqs):
                if self._is_free(seq - first, places, seen) and leaves:
                    leaves[32 * seq : 32 * seq + 32] = each.leaves[32 * number : 32 * number + 32]
        if count < places:
            self._find_holes(first, last, seen, self._gaps())
        elif leaves:
            self._rebuild(leaves, heads)
        else:
            self.report.note(
                "The export does not begin with the first leaf, so that the roots of heads cannot be computed from it:"
                " what it holds is covered by the manifest's signature. Single records are shown by their proofs."
            )

    def _is_free(self, place: int, places: int, seen: bytearray) -> bool:
        if not 0 <= place < places:
            self.report.find(INSERTED, "the record is not of the range", place=place)
            return False
        if seen[place >> 3] >> (place & 7) & 1:
            self.report.find(INSERTED, "two records have the same place", place=place)
            return False
        seen[place >> 3] |= 1 << (place & 7)
        return True

    def _gaps(self) -> list[Gap]:
        raw = (self._box.read("gaps.jsonl") or b"").decode("utf-8", "replace")
        found = []
        for number, line in enumerate(raw.splitlines(), 1):
            document = _json(line, "gaps.jsonl")
            gap = read_gap(
                self.report, str(document.get("certificate")), document.get("note"), self._trust, str(number)
            )
            found += [gap] if gap else []
        return found

    def _find_holes(self, first: int, last: int, seen: bytearray, gaps: Sequence[Gap]) -> None:
        for place in range(last - first + 1):
            if seen[place >> 3] >> (place & 7) & 1:
                continue
            if self.report.counts.get(MISSING, 0) > _KEPT:
                self.report.find(MISSING, "further records are not there")
                return
            gap = next((each for each in gaps if each.holds(first + place)), None)
            verdict = EXPIRED if gap else MISSING
            self.report.find(verdict, "the record is not there", seq=first + place, month=gap.month if gap else None)

    def _rebuild(self, leaves: bytearray, heads: Sequence[Head]) -> None:
        tree = Tree()
        checked = 0
        for head in heads:
            if head.size * 32 > len(leaves):
                break
            while tree.size < head.size:
                tree.append(bytes(leaves[32 * tree.size : 32 * tree.size + 32]))
            checked += 1
            if tree.root != head.root:
                self.report.find(MODIFIED, "the records are not those that the head was signed over", head=head.number)
                return
        self.report.note(f"The roots of {checked} heads follow from the records.")


def verify_export(path: str, options: Options) -> Report:
    """Verify an export of the ledger, a folder or a zip archive. Raises Unusable."""
    try:
        return ExportCheck(path, options).run()
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise Unusable(f"{path} is no export that can be read: {type(error).__name__}: {error}") from error


# --- Proofs -----------------------------------------------------------------------------------------------------------


def verify_proof(path: str, options: Options) -> Report:
    """Verify that a record is in the tree of a head (`mcpsite-proof/1`). Raises Unusable."""
    document, report, trust = _document(path, "mcpsite-proof/1", options)
    try:
        record, seq = document["record"], document["seq"]
        steps = [_unbase64(each, "path") for each in document["path"]]
        head = _signed_head(report, document["head"], trust, "head")
        fault = check_record(record)
        if fault:
            report.find(MODIFIED, fault, record=record.get("id"), rid=record["record"].get("rid"), seq=seq)
        if record["seq"] != seq:
            report.find(MODIFIED, f"the record says seq {record['seq']}, the proof {seq}")
        if head and _root_of(bytes.fromhex(record["leaf"]), seq, head.size, steps) != head.root:
            report.find(MODIFIED, "the path does not lead to the head's root", seq=seq, head=head.number)
        said = record["record"]
        report.facts.update(record=said.get("rid"), time=said.get("at"), seq=seq)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"{path} is no proof that can be read: {type(error).__name__}: {error}") from error
    return _with_witness(report, head, options, trust)


def verify_consistency(path: str, options: Options) -> Report:
    """Verify that the tree of one head continues that of another (`mcpsite-consistency/1`). Raises Unusable."""
    document, report, trust = _document(path, "mcpsite-consistency/1", options)
    try:
        steps = [_unbase64(each, "path") for each in document["path"]]
        first = _signed_head(report, document["from"], trust, "from")
        second = _signed_head(report, document["to"], trust, "to")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"{path} is no proof that can be read: {type(error).__name__}: {error}") from error
    if first and second:
        if first.origin != second.origin:
            report.find(MODIFIED, "the two heads are of different ledgers")
        if not consistent(first.size, second.size, first.root, second.root, steps):
            what = f"the tree of head {second.number} does not continue that of head {first.number}"
            report.find(ROLLED_BACK, what, head=second.number)
    return _with_witness(report, second, options, trust)


def _document(path: str, wanted: str, options: Options) -> tuple[dict[str, Any], Report, Trust]:
    document = _json(_read_text(path), path)
    if document.get("format") != wanted:
        raise Unusable(f"{path} is of the format {document.get('format')!r}, not {wanted}")
    found = [each for each in document.get("keys") or [] if isinstance(each, str)]
    keys = read_witness(options.witness)[1] if options.witness else []
    return document, Report(), Trust((*options.keys, *keys), found)


def _signed_head(report: Report, text: str, trust: Trust, name: str) -> Head | None:
    try:
        note = parse_note(text)
        head = parse_head(note.text)
        signed = set(check_note(note, trust.known.values()))
    except NoteError as error:
        report.find(MODIFIED, f"{name} is not a signed head: {error}")
        return None
    if not signed:
        report.find(MODIFIED, f"{name} is not signed by a key of this ledger", head=head.number)
    elif trust.given and not signed & trust.given:
        names = ", ".join(sorted(_id(each) for each in signed))
        report.find(MODIFIED, f"{name} is signed by a key that you did not name ({names})", head=head.number)
    report.facts.update({name: head.number, f"{name}_sealed": _time(head.sealed_at)})
    if trust.witnesses:
        report.facts[f"{name}_cosigned"] = check_cosignatures(report, head, note, trust)
    return head


def _with_witness(report: Report, head: Head | None, options: Options, trust: Trust) -> Report:
    if not trust.given:
        trust.explain(report, ())
    if options.witness and head:
        kept, _ = read_witness(options.witness)
        if kept.head.number == head.number:
            check_witnessed(report, kept, head, head.number, trust, head.origin)
        else:
            report.note(
                f"The witness keeps head {kept.head.number}, the proof has head {head.number}:"
                " a consistency proof tells whether one continues the other."
            )
    return report


def _root_of(leaf: bytes, seq: int, size: int, path: Sequence[bytes]) -> bytes | None:
    try:
        return inclusion_root(leaf, seq, size, path)
    except ValueError:
        return None


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path} cannot be read: {error}") from error
    if len(text) > _LARGEST_FILE:
        raise Unusable(f"{path} is larger than {_LARGEST_FILE >> 20} MiB")
    return text


def _json(text: str, name: str) -> dict[str, Any]:
    try:
        document = parse_json(text)
    except ValueError as error:
        raise Unusable(f"{name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Unusable(f"{name} is not an object of JSON")
    return document


# --- The command ------------------------------------------------------------------------------------------------------


def moment(text: str) -> datetime:
    """A time on the command line; without an offset it is UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "verify.py",
        description="Verifies the ledger of mcpsite. The exit code is 0 if all is as it was sealed, 1 if it is not,"
        " 2 if it cannot be told.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--key", action="append", default=[], metavar="VKEY", help="a public key that you trust")
    common.add_argument("--keys", metavar="FILE", help="a file with keys that you trust, one a line")
    common.add_argument(
        "--witness", "--anchor", metavar="FILE", help="the state of a witness, an anchor, or a head that you kept"
    )
    common.add_argument(
        "--accept-break", action="append", type=int, default=[], metavar="NUMBER",
        help="the number of a head whose break you know of: what it explains is no fault",
    )  # fmt: skip
    common.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes at work")
    common.add_argument("--json", action="store_true", help="answer with JSON")
    commands = parser.add_subparsers(dest="command", required=True)
    database = commands.add_parser("database", parents=[common], help="the ledger of a database")
    database.add_argument("--url", default="", help="postgresql://…, of a role that may read; or PGHOST, PGUSER, …")
    database.add_argument("--since", type=moment, metavar="TIME", help="only what was recorded from this time on")
    database.add_argument("--until", type=moment, metavar="TIME", help="only what was recorded before this time")
    for name, what in (
        ("export", "a folder or zip archive with an export"),
        ("proof", "the inclusion proof of a record"),
        ("consistency", "the consistency proof of two heads"),
    ):
        commands.add_parser(name, parents=[common], help=what).add_argument("path", metavar="PATH")
    return parser


def _show_progress(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r\033[K{what}: {done:,} of {total:,}")
    sys.stderr.flush()


def _options(arguments: argparse.Namespace) -> Options:
    keys = list(arguments.key)
    if arguments.keys:
        lines = (line.strip() for line in _read_text(arguments.keys).splitlines())
        keys += [line for line in lines if line and not line.startswith("#")]
    accepted = tuple(arguments.accept_break)
    options = Options(tuple(keys), arguments.witness, jobs=max(arguments.jobs, 1), accepted=accepted)
    if arguments.command == "database":
        options = options._replace(since=arguments.since, until=arguments.until)
    if sys.stderr.isatty() and not arguments.json:
        options = options._replace(progress=_show_progress)
    return options


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 for OK, 1 for anything that is not as it was sealed, 2 when nothing can be said."""
    arguments = _parser().parse_args(words)
    try:
        options = _options(arguments)
        match arguments.command:
            case "database":
                report = verify_database(arguments.url, options)
            case "export":
                report = verify_export(arguments.path, options)
            case "proof":
                report = verify_proof(arguments.path, options)
            case _:
                report = verify_consistency(arguments.path, options)
    except (Unusable, NoteError) as error:
        print(f"verify.py: {_printable(str(error))}.", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - whatever it was, it is neither OK nor a verdict
        what = _printable(f"{type(error).__name__}: {error}")
        print(f"verify.py: the verification could not be finished, and nothing can be said: {what}.", file=sys.stderr)
        return 2
    if sys.stderr.isatty() and not arguments.json:
        sys.stderr.write("\r\033[K")
    print(json.dumps(report.as_json(), indent=2) if arguments.json else report)
    return 0 if report.verdict == OK else 1


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console of fewer characters is no reason to fail
    sys.exit(main())
