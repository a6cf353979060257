"""What the records of a call say of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from access.offered import OfferedEntry
from access.snapshot import Snapshot
from audit.entry import uuid7
from gateway.terms import Call, Callee, Facts


def facts_of(call: Call, snapshot: Snapshot, known: Callee | None) -> Facts:
    """What every record of this call says."""
    principal = call.principal
    recording = snapshot.recording if known is None else known.recording
    facts = {
        "call_id": call.call_id or uuid7(),
        "actor": principal.username,
        "actor_id": str(principal.user_id),
        "on_behalf_of": principal.on_behalf_of,
        "token": principal.token,
        "roles": principal.role_names,
        "door": call.door,
        "client": call.client,
        "address": call.address,
        "tool": call.tool,
        "policy_version": snapshot.version,
        "trace_id": call.traceparent[3:35] if call.traceparent else None,
        "request_id": call.request_id,
        "arguments": call.raw,
        "detail": detail_of(call.notes) if call.notes else None,
    }
    return facts if recording is None else facts | recording.told(call.arguments)


def about(tool: Callee) -> Facts:
    """What records say of what is called, once the caller may."""
    facts: Facts = {"connector": tool.source.source.name, "effect": tool.effect, "definition": tool.fingerprint}
    if isinstance(tool, OfferedEntry):
        facts |= dict(zip(("object_type", "object_id"), tool.about, strict=True))
    return facts


def concluding(call: Call, kind: str, facts: Facts) -> tuple[str, Facts]:
    """The last record of a call: an outcome, where an intent is on record."""
    if call.held is not None and call.held.is_announced:
        return "outcome", without_arguments(facts)
    return kind, facts


def without_arguments(facts: Facts) -> Facts:
    """For the outcome: its intent says and keeps what they were."""
    left = {name: value for name, value in facts.items() if name not in ("shown", "some_arguments")}
    return {**left, "arguments": None}


def timings_of(started: int, before: int) -> Facts:
    """How long the upstream took, and all of it."""
    now = time.perf_counter_ns()
    return {"upstream_us": (now - before) // 1000, "total_us": (now - started) // 1000}


def passed_on(call: Call) -> Mapping[str, Any] | None:
    """How much of what the upstream told and asked reached the client: the words themselves are nowhere on record."""
    peer = call.peer
    if peer is None or not (peer.told or peer.asked):
        return None
    return {name: count for name, count in (("told", peer.told), ("asked", peer.asked)) if count}


def detail_of(*notes: Mapping[str, Any] | None) -> str | None:
    """The notes in one, as a record keeps them."""
    told = {name: value for each in notes if each for name, value in each.items()}
    return orjson.dumps(told).decode() if told else None
