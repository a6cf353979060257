"""What the pipeline decided about a call, gate by gate, in words for people.

Which gate was passed is what the pipeline says; nothing is decided here. Only the reasons are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from access.reach import grants_of
from access.snapshot import Principal, Snapshot
from gateway.terms import GATES, Refused
from tools.models import Tool

State = Literal["passed", "failed", "skipped"]

CALLER = "caller"
_ORDER = (CALLER, *GATES)
_TITLES = {
    CALLER: "Caller",
    "ready": "Policy and ledger",
    "grant": "Grant",
    "budget": "Budget",
    "arguments": "Arguments",
    "intent": "Effect",
    "record": "Record",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate, and what came of it."""

    title: str
    state: State
    said: str


def explain(
    tool: Tool, snapshot: Snapshot, principal: Principal, refused: Refused | None, as_role: str | None
) -> list[Gate]:
    """Every gate in the order of the pipeline, up to the one that refused; the rest were not reached."""
    stopped = _ORDER.index(refused.gate) if refused else len(_ORDER)
    reasons = _passed(tool, snapshot, principal, as_role)
    gates = []
    for place, name in enumerate(_ORDER):
        if place < stopped:
            gates.append(Gate(_TITLES[name], "passed", reasons[name]))
        elif refused and place == stopped:
            gates.append(Gate(_TITLES[name], "failed", _failed(tool, snapshot, principal, refused)))
        elif refused and refused.record_id and name == "record":
            gates.append(Gate(_TITLES[name], "passed", "The refusal was on disk before this answer was shown."))
        else:
            gates.append(Gate(_TITLES[name], "skipped", "Not reached."))
    return gates


def unknown_caller(said: str) -> list[Gate]:
    """The gates when it is not even known who calls."""
    return [Gate(_TITLES[CALLER], "failed", said), *(Gate(_TITLES[name], "skipped", "Not reached.") for name in GATES)]


def _passed(tool: Tool, snapshot: Snapshot, principal: Principal, as_role: str | None) -> dict[str, str]:
    entry = snapshot.tools.get(tool.name)
    rights = f"with the rights of the role {as_role} only" if as_role else f"roles: {principal.role_names or 'none'}"
    budget = max((snapshot.grants.get(role, {}).get(tool.name, 0) for role in principal.roles), default=0)
    fingerprint = entry.fingerprint.hex()[:12] if entry else ""
    reads = entry is None or entry.effect == Tool.Effect.READ
    return {
        CALLER: f"{principal.username}, logged in to the admin; {rights}.",
        "ready": f"Policy {snapshot.version} is in force, and the ledger takes records.",
        "grant": _granted(tool, principal),
        "budget": f"{budget} calls a minute, of {principal.username} for this tool; this call is one of them.",
        "arguments": f"They fit the input schema (definition {fingerprint}…).",
        "intent": "The tool only reads: there was nothing to confirm, and no intent to record."
        if reads
        else f"{tool.get_effect_display()}: you confirmed it, and the intent was on record before the call.",
        "record": "The record was on disk before this answer was shown.",
    }


def _granted(tool: Tool, principal: Principal) -> str:
    grants = [str(grant) for grant in grants_of(tool, principal.roles)]
    return f"{'; '.join(grants)}." if grants else "Granted when the call was made."


def _failed(tool: Tool, snapshot: Snapshot, principal: Principal, refused: Refused) -> str:
    if refused.reason == "unknown_tool":
        return _why_not_in_force(tool)
    if refused.reason == "not_granted":
        who = f"no grant of {principal.role_names} names it" if principal.role_names else "the caller has no role"
        return f"Not granted: {who}. To clients it looks as if it did not exist."
    return str(refused)


def _why_not_in_force(tool: Tool) -> str:
    if not tool.enabled:
        return "The tool is switched off."
    if not tool.source.enabled:
        return f"Its data source {tool.source.name} is switched off."
    if tool.current is None:
        return "The tool has no published definition."
    return "The tool is not in force: it was changed this moment, or it cannot be used, and the log says why."
