"""Log lines: one JSON object each, with the id of the request that caused it, and without secrets that are known."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

from audit.masking import known

request_id_now: ContextVar[str] = ContextVar("request_id", default="")


def _traceback(record: logging.LogRecord) -> str:
    """Where it happened, if that is of use: Django adds it to every page that is refused, which is no fault."""
    if not record.exc_info or (record.name == "django.request" and record.levelno < logging.ERROR):
        return ""
    return logging.Formatter().formatException(record.exc_info)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of ASCII JSON, so that no content can start a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": known().masker.text(record.getMessage()),
            "process": record.process,
        }
        if request_id := request_id_now.get():
            line["request_id"] = request_id
        if traceback := _traceback(record):
            line["exception"] = known().masker.text(traceback)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people at a terminal: time, level, message; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, followed by a traceback if there is one."""
        masker = known().masker
        message = masker.text(record.getMessage()).encode("unicode_escape").decode()
        time = datetime.fromtimestamp(record.created, UTC)
        text = f"{time:%H:%M:%S} {record.levelname.lower():7} {record.name}: {message}"
        traceback = _traceback(record)
        return f"{text}\n{masker.text(traceback)}" if traceback else text
