"""Hands out an archive, whole or by a range (RFC 9110, section 14), to whoever may have it; that is on record."""

from __future__ import annotations

import re
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from audit.export.models import Export
from audit.export.parts import read
from audit.export.records import record_export

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def download(request: Any, export: Export, door: str) -> HttpResponseBase:
    """The archive as a download; 206 or 416 where a range was asked for."""
    tag = f'"{export.digest}"'
    headers = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, no-store"}
    wanted = _wanted(request, export.size, tag)
    if wanted is None:
        return HttpResponse(status=416, headers={**headers, "Content-Range": f"bytes */{export.size}"})
    first, last, partial = wanted
    if request.method != "HEAD":
        part = {"range": f"{first}-{last}"} if partial else {}
        record_export(export, "export_downloaded", door=door, request=request, **part)
    headers |= {
        "Content-Length": str(last - first + 1),
        "Content-Disposition": f'attachment; filename="{export.filename}"',
        # Proxies that would gather the answer are told not to (nginx).
        "X-Accel-Buffering": "no",
    }
    if partial:
        headers["Content-Range"] = f"bytes {first}-{last}/{export.size}"
    status = 206 if partial else 200
    if request.method == "HEAD":
        return HttpResponse(status=status, content_type="application/zip", headers=headers)
    return StreamingHttpResponse(
        read(export, first, last), status=status, content_type="application/zip", headers=headers
    )


def _wanted(request: HttpRequest, size: int, tag: str) -> tuple[int, int, bool] | None:
    """First and last byte, and whether a range was asked for; None when there is no such range.

    Several ranges, and ranges of an archive that is another one, are answered with the whole.
    """
    found = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if found is None or not (found[1] or found[2]) or request.headers.get("If-Range", tag) != tag:
        return 0, size - 1, False
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size - 1, True) if length else None
    first, last = int(found[1]), min(int(found[2]) if found[2] else size, size - 1)
    return (first, last, True) if first <= last else None
