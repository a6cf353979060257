"""Keeps one thread for each stream that is switched on, or that somebody tests."""

from __future__ import annotations

import logging
import threading
import uuid
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import psycopg
from django.conf import settings
from django.db import DatabaseError, close_old_connections

from audit.masking import known
from audit.streams.delivery import Delivery, Work
from audit.streams.models import Stream, StreamState
from audit.streams.options import Refused, SyslogOptions, filters_of, options_of, receiver
from audit.streams.senders import Connect, Sender, SyslogSender, WebhookSender

logger = logging.getLogger("audit.streams")

_LOOK_SECONDS = 1.0
_STOP_SECONDS = 5.0
_SYSLOG_BATCH = 200


@dataclass(slots=True)
class _Running:
    revision: datetime
    delivery: Delivery
    thread: threading.Thread


class StreamWorker:
    """Delivers all streams. `start` returns at once; `stop` waits a moment for what is under way."""

    def __init__(self, conninfo: str, connect: Connect) -> None:
        self._conninfo = conninfo
        self._connect = connect
        self._stopping = threading.Event()
        self._running: dict[uuid.UUID, _Running] = {}
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)

    def start(self) -> None:
        """Begin to look for streams."""
        self._thread.start()

    def stop(self) -> None:
        """End all deliveries. What was not acknowledged is sent by the next leader."""
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)
        for each in self._running.values():
            each.delivery.stop()
        for each in self._running.values():
            each.thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except DatabaseError as error:
                logger.warning("streams cannot be read: %s", str(error).partition("\n")[0])
            except Exception:
                logger.exception("streams cannot be looked after")
            self._stopping.wait(_LOOK_SECONDS)

    def _look(self) -> None:
        """Start what should run and does not, and end what was changed: it starts anew at the next look."""
        close_old_connections()
        try:
            # Most sites have none, and are asked once a second.
            found = Stream.objects.select_related("state") if Stream.objects.exists() else ()
            wanted = {each.pk: each for each in found if _is_wanted(each)}
            if wanted or self._running:
                # Deliveries ask no database of Django's: what they are told is masked with what is known from here.
                known().current()
        finally:
            close_old_connections()
        for pk, running in list(self._running.items()):
            stream = wanted.get(pk)
            if stream is None or stream.updated_at != running.revision:
                running.delivery.stop()
            if not running.thread.is_alive():
                del self._running[pk]
        for pk, stream in wanted.items():
            if pk not in self._running:
                self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        try:
            delivery = Delivery(self._conninfo, work_of(stream), sender_of(stream, self._connect))
        except (Refused, ValueError) as error:
            _note_unusable(stream, str(error))
            return
        thread = threading.Thread(
            target=_guarded, args=(stream.name, delivery), name=f"stream {stream.name}", daemon=True
        )
        self._running[stream.pk] = _Running(stream.updated_at, delivery, thread)
        thread.start()


def _is_wanted(stream: Stream) -> bool:
    return stream.enabled or stream.state.test_asked_at is not None


def work_of(stream: Stream) -> Work:
    """What is to be delivered for the stream."""
    batch = stream.options.get("batch_records", _SYSLOG_BATCH)
    return Work(stream.pk, stream.name, filters_of(stream), stream.enabled, batch)


def sender_of(stream: Stream, connect: Connect) -> Sender:
    """The way to the stream's receiver. Raises Refused when its options or secrets cannot be used."""
    options = options_of(stream)
    if isinstance(options, SyslogOptions):
        hostname = urlsplit(settings.PUBLIC_URL).hostname or "-"
        return SyslogSender(options, receiver(stream), hostname, connect)
    return WebhookSender(options, stream.address, receiver(stream), stream.pk, connect)


def _note_unusable(stream: Stream, said: str) -> None:
    now = {"failed_at": datetime.now(tz=None).astimezone(), "error": f"It cannot be used: {said}"}
    StreamState.objects.filter(stream=stream).update(**now, test_asked_at=None)
    StreamState.objects.filter(stream=stream, failing_since=None).update(failing_since=now["failed_at"])


def _guarded(name: str, delivery: Delivery) -> None:
    try:
        delivery.run()
    except psycopg.Error as error:
        logger.warning("the stream %s has lost PostgreSQL: %s", name, str(error).partition("\n")[0])
    except Exception:
        logger.exception("the stream %s ended in a way that nobody foresaw", name)
