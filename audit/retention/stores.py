"""Where cold exports are kept: a folder of a disk, or a prefix of an S3 bucket. `LEDGER_ARCHIVE` says which."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from django.utils import timezone

from audit.durable import sync_folder
from audit.s3 import S3Failed, connect, failing

_DIGEST = "sha256"
_PART_BYTES = 16 * 1024 * 1024
_OPTIONS = frozenset({"region", "endpoint", "lock_mode", "lock_days", "kms_key"})
_LOCK_MODES = ("GOVERNANCE", "COMPLIANCE")


class StoreError(Exception):
    """The archive cannot be written or read; the message says what to do."""

    code = "archive_unavailable"


class Store(Protocol):
    """Files of one export under their names."""

    @property
    def place(self) -> str:
        """The URL of the folder."""

    def has(self, name: str, digest: str, size: int) -> bool:
        """Whether the file is there with this SHA-256 (hex)."""

    def put(self, name: str, path: Path, digest: str) -> None:
        """Keep the file under the name; when it returns, it is on disk."""

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The file, to be read from the beginning. Raises StoreError when there is none."""
        yield  # type: ignore[misc]


def settle(url: str) -> str:
    """The URL, when it names a place that exports can go to. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or options:
            raise ValueError("a folder is written as file:///absolute/path")
        return url
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError("it begins with file:/// or s3://bucket")
    if unknown := sorted(set(options) - _OPTIONS):
        raise ValueError(f"{', '.join(unknown)} is no option: there are {', '.join(sorted(_OPTIONS))}")
    locks = "lock_mode" in options or "lock_days" in options
    if locks and (options.get("lock_mode") not in _LOCK_MODES or not options.get("lock_days", "").isdecimal()):
        raise ValueError("a lock needs lock_mode (GOVERNANCE or COMPLIANCE) and lock_days, a number")
    return url


def store_for(url: str, folder: str) -> Store:
    """The store of one export: `folder` below the place that `LEDGER_ARCHIVE` names."""
    parts = urlsplit(settle(url))
    if parts.scheme == "file":
        return Disk(Path(unquote(parts.path)) / folder)
    return Bucket.named(
        parts.netloc, f"{unquote(parts.path).strip('/')}/{folder}".strip("/"), dict(parse_qsl(parts.query))
    )


def store_at(place: str) -> Store:
    """The store of an export that was written there."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Disk(Path(unquote(parts.path)))
    return Bucket.named(parts.netloc, unquote(parts.path).strip("/"), dict(parse_qsl(parts.query)))


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that only its owner may read."""

    path: Path

    @property
    def place(self) -> str:
        """As a URL."""
        return self.path.as_uri()

    def has(self, name: str, digest: str, size: int) -> bool:
        """Read from the disk."""
        file = self.path / name
        if not file.is_file() or file.stat().st_size != size:
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == digest

    def put(self, name: str, path: Path, digest: str) -> None:
        """Written beside its place, made durable, then moved there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = self.path / f".{name}.part"
            with path.open("rb") as source, partial.open("wb") as target:
                os.fchmod(target.fileno(), 0o600)
                shutil.copyfileobj(source, target, 1024 * 1024)
                target.flush()
                os.fsync(target.fileno())
            partial.replace(self.path / name)
            sync_folder(self.path)
        except OSError as error:
            raise StoreError(f"{name} cannot be written to {self.path}: {error.strerror or error}.") from error

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """From the disk."""
        try:
            stream = (self.path / name).open("rb")
        except OSError as error:
            raise StoreError(f"{name} cannot be read from {self.path}: {error.strerror or error}.") from error
        with stream:
            yield stream


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of an S3 bucket. Credentials are those that boto3 finds: a role, the environment, a profile."""

    client: Any
    bucket: str
    prefix: str
    options: dict[str, str]

    @classmethod
    def named(cls, bucket: str, prefix: str, options: dict[str, str]) -> Bucket:
        """With a client of its own. Nothing is asked yet."""
        client = connect(options.get("region"), options.get("endpoint"), attempts=5, answer_seconds=60)
        return cls(client, bucket, prefix, options)

    @property
    def place(self) -> str:
        """As a URL, with what is needed to read it again."""
        wanted = {name: value for name, value in self.options.items() if name in ("region", "endpoint")}
        return f"s3://{self.bucket}/{self.prefix}" + (f"?{urlencode(wanted)}" if wanted else "")

    def has(self, name: str, digest: str, size: int) -> bool:
        """By size and the digest that was kept along; reading back proves the content."""
        try:
            with failing(self._named(name)):
                found = self.client.head_object(Bucket=self.bucket, Key=self._key(name))
        except S3Failed as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise StoreError(str(error)) from error
        return bool(found["ContentLength"] == size and found["Metadata"].get(_DIGEST) == digest)

    def put(self, name: str, path: Path, digest: str) -> None:
        """In parts where it is large; the server checks each against its SHA-256."""
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=2)
        try:
            with failing(self._named(name)):
                self.client.upload_file(
                    str(path), self.bucket, self._key(name), ExtraArgs=self._extra(digest), Config=config
                )
        except (S3Failed, OSError) as error:
            raise StoreError(str(error)) from error

    def _extra(self, digest: str) -> dict[str, Any]:
        extra: dict[str, Any] = {"ChecksumAlgorithm": "SHA256", "Metadata": {_DIGEST: digest}}
        if "kms_key" in self.options:
            extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.options["kms_key"]}
        if "lock_mode" in self.options:
            until = timezone.now() + timedelta(days=int(self.options["lock_days"]))
            extra |= {"ObjectLockMode": self.options["lock_mode"], "ObjectLockRetainUntilDate": until}
        return extra

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """From the bucket, with the checksum of the server checked by the client."""
        try:
            with failing(self._named(name)):
                body = self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"]
                with closing(body):
                    yield body
        except S3Failed as error:
            raise StoreError(str(error)) from error

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _named(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"
