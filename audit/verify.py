"""Verifies the ledger, and stands alone: this one file needs Python and `cryptography`, and nothing of the rest.

What it checks, and the formats, are described in docs/evidence.md. The rest of the project imports them from here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, NamedTuple
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
                return _BIGINT.pack(value)
            case "bytea":
                return bytes.fromhex(value)
            case "timestamptz":
                return _BIGINT.pack((datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND)
    except Exception as error:
        raise ValueError(f"{value!r} is no {kind}") from error
    raise ValueError(f"{kind!r} is no type of a column")


def fields_of(record: Mapping[str, Any]) -> list[bytes | None]:
    """The fields of a record as JSON (docs/evidence.md), in the order of `COLUMNS`; what is not there is NULL."""
    return [binary(record.get(name), kind) for name, kind in COLUMNS]


def leaves_of(fields: Sequence[bytes | None]) -> Iterator[bytes]:
    """Every leaf that a record with these fields may have: of each length of `FORMATS` after which all is NULL."""
    for length in reversed(FORMATS):
        if length <= len(fields) and all(field is None for field in fields[length:]):
            yield leaf_hash(fields[:length])


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

    def append_subtree(self, height: int, root: bytes) -> None:
        """Add a complete subtree of `2 ** height` leaves on the right, of a tree that ends at such a border."""
        if self.size % (1 << height):
            raise ValueError(f"After {self.size} leaves no subtree of height {height} can begin")
        merges = (~(self.size >> height) & (self.size >> height) + 1).bit_length() - 1
        for _ in range(merges):
            root = node_hash(self.peaks.pop(), root)
        self.peaks.append(root)
        self.size += 1 << height

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
