"""A sealer at work, and what exports need around them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import AsyncClient

from access.models import User
from audit.export.models import Export
from audit.export.tests.sealer import TestSealer
from audit.export.working import carry_out, write_records_of


@pytest.fixture
def sealer(committed_db: None) -> Iterator[TestSealer]:
    with TestSealer().at_work() as working:
        yield working


@pytest.fixture
def still_sealer(committed_db: None) -> TestSealer:
    """Seals when it is told to."""
    return TestSealer()


def make_user(name: str, *permissions: str, **values: Any) -> User:
    user = User.objects.create_user(name, is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def made(export: Export) -> Export:
    """The export after the worker's work."""
    carry_out(export.pk, write_records_of, lambda: False)
    return Export.objects.get(pk=export.pk)


def archive_of(export: Export) -> zipfile.ZipFile:
    raw = b"".join(bytes(part.data) for part in export.parts.order_by("number"))
    assert len(raw) == export.size
    return zipfile.ZipFile(io.BytesIO(raw))


def manifest_of(export: Export) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(archive_of(export).read("manifest.json"))
    return found


async def downloaded(user: User, url: str, **headers: str) -> tuple[Any, bytes]:
    client = AsyncClient()
    await client.aforce_login(user)
    answer: Any = await client.get(url, headers=headers)
    if not answer.streaming:
        return answer, answer.content
    return answer, b"".join([part async for part in answer.streaming_content])
