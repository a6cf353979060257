"""Places outside of the database where heads are anchored, as LEDGER_ANCHORS names them."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from django.core.exceptions import ImproperlyConfigured

from audit.outside.sinks.base import Sink
from audit.outside.sinks.bucket import BucketSink
from audit.outside.sinks.file import FileSink
from audit.outside.sinks.webhook import WebhookSink

_FORMS = "file:///directory, s3://bucket/prefix?mode=compliance&days=3650 or https://host/path"


def read(words: Sequence[str], secret: str | None) -> tuple[Sink, ...]:
    """The sinks; raises ImproperlyConfigured, whose sentences never repeat what may hold a password."""
    sinks = tuple(_sink(word, secret) for word in words)
    names = [each.name for each in sinks]
    if double := next((each for each in names if names.count(each) > 1), None):
        raise ImproperlyConfigured(f"LEDGER_ANCHORS names {double} twice.")
    return sinks


def _sink(word: str, secret: str | None) -> Sink:
    try:
        parts = urlsplit(word)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("it holds a password or a fragment, which none of them has")
        match parts.scheme:
            case "file":
                return FileSink.of(parts, options)
            case "s3":
                return BucketSink.of(parts, options)
            case "https":
                return WebhookSink.of(parts, secret)
    except ValueError as error:
        raise ImproperlyConfigured(f"LEDGER_ANCHORS: an entry ({word[:8]}…) cannot be used: {error}.") from error
    raise ImproperlyConfigured(f"LEDGER_ANCHORS: an entry ({word[:8]}…) is none of {_FORMS}.")
