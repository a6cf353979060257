"""Anchors heads in S3 with Object Lock: until the day that is set, nobody can delete or overwrite them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult

from audit.outside.sinks.base import Anchored, Receipt, SinkFailed
from audit.s3 import S3Failed, connect, failing

_OPTIONS = {"mode", "days", "region", "endpoint"}
_MODES = ("compliance", "governance", "none")
_MOST_DAYS = 36_500
_LONGEST_NOTE = 64 * 1024


@dataclass(frozen=True, slots=True)
class BucketSink:
    """A bucket and a prefix. Credentials are found as the AWS SDK finds them."""

    bucket: str
    prefix: str
    mode: str
    days: int
    region: str | None
    endpoint: str | None

    @classmethod
    def of(cls, parts: SplitResult, options: dict[str, str]) -> BucketSink:
        """Raises ValueError."""
        if unknown := set(options) - _OPTIONS:
            raise ValueError(
                f"{', '.join(sorted(unknown))} is no option of s3, there are {', '.join(sorted(_OPTIONS))}"
            )
        mode, days = options.get("mode", "compliance"), options.get("days", "3650")
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}")
        if not re.fullmatch(r"[0-9]{1,5}", days) or not 1 <= int(days) <= _MOST_DAYS:
            raise ValueError(f"days must be a number from 1 to {_MOST_DAYS}")
        if not parts.netloc:
            raise ValueError("it names no bucket")
        prefix = parts.path.strip("/")
        return cls(parts.netloc, prefix, mode, int(days), options.get("region"), options.get("endpoint"))

    @property
    def name(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put(self, anchored: Anchored, sequence: int) -> Receipt:
        """Store the note under a key of its own, locked. The receipt names the version, and until when it is locked."""
        key = self._folder(anchored.head.origin) + anchored.key
        with self._client() as client:
            try:
                with failing(self.name):
                    client.put_object(
                        Bucket=self.bucket, Key=key, Body=anchored.note.encode(), IfNoneMatch="*",
                        ContentType="text/plain; charset=utf-8", ChecksumAlgorithm="SHA256", **self._lock(),
                    )  # fmt: skip
            except S3Failed as error:
                if error.status != HTTPStatus.PRECONDITION_FAILED:
                    raise
                self._must_be(client, key, anchored.note)
            kept = client.head_object(Bucket=self.bucket, Key=key)
        if self.mode != "none" and "ObjectLockRetainUntilDate" not in kept:
            raise SinkFailed(f"{self.name} took the head, but does not lock it: the bucket needs Object Lock.")
        until = kept.get("ObjectLockRetainUntilDate")
        return {
            "key": key,
            "version": kept.get("VersionId"),
            "etag": kept["ETag"],
            "locked_until": until.isoformat() if until else None,
        }

    def _lock(self) -> dict[str, Any]:
        if self.mode == "none":
            return {}
        until = datetime.now(UTC) + timedelta(days=self.days)
        return {"ObjectLockMode": self.mode.upper(), "ObjectLockRetainUntilDate": until}

    def _must_be(self, client: Any, key: str, note: str) -> None:
        """It was stored before, and the answer was lost."""
        if self._content(client, key) != note:
            raise SinkFailed(f"{self.name} holds something else under {key}, which names its content: look at it.")

    def newer(self, origin: str, than: Anchored | None) -> str | None:
        """The note under the last key."""
        folder, last = self._folder(origin), None
        start = folder + than.key if than else folder
        with self._client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=folder, StartAfter=start
            )
            for page in pages:
                for each in page.get("Contents", ()):
                    last = each["Key"]
            return None if last is None else self._content(client, last)

    def _content(self, client: Any, key: str) -> str:
        body: bytes = client.get_object(Bucket=self.bucket, Key=key)["Body"].read(_LONGEST_NOTE)
        return body.decode("utf-8", "replace")

    def _folder(self, origin: str) -> str:
        return f"{self.prefix}/{origin}/".lstrip("/")

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """A client, whose failures are SinkFailed."""
        try:
            with failing(self.name):
                yield connect(self.region, self.endpoint, attempts=2, answer_seconds=20)
        except S3Failed as error:
            raise SinkFailed(str(error)) from error
