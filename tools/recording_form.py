"""The form of a policy of recording, and an example of what a record will hold under it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django import forms
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold import widgets  # type: ignore[import-untyped]

from audit.theme import with_code
from tools import exact
from tools.models import DataSource, Tool
from tools.recording import TREATMENTS, Policy, PolicyRefused, checked, compiled, effective

RECORDED_TITLE = "What the ledger keeps"
RECORDED = "recorded_"
_BY_NUMBER = RECORDED + "argument_"
_MOST_ARGUMENTS = 40
_LABELS = {
    "clear": "In the clear",
    "last4": "Masked: last 4 characters",
    "domain": "Masked: domain of an e-mail address",
    "length": "Masked: length only",
    "encrypted": "Encrypted",
    "dropped": "Dropped",
}
_SAMPLES = {
    "email": "ada@example.com",
    "date": "2026-11-23",
    "date-time": "2026-11-23T10:00:00Z",
    "uri": "https://example.com/",
}


def recording_fields(target: Tool | DataSource) -> dict[str, forms.Field]:
    """The fields of the policy that the tool or data source has."""
    policy = _stored(target)
    names = arguments_of(target)
    above = "the data source" if isinstance(target, Tool) else "the site"
    found: dict[str, forms.Field] = {
        f"{_BY_NUMBER}{number}": _choice(name, policy.arguments.get(name), f"As {above} says")
        for number, name in enumerate(names)
    }
    rest = "Every other argument" if names else "Every argument"
    found[RECORDED + "otherwise"] = _choice(rest, policy.otherwise, f"As {above} says")
    further = "\n".join(f"{name} {how}" for name, how in policy.arguments.items() if name not in names)
    found[RECORDED + "further"] = forms.CharField(
        label="Further rules",
        required=False,
        initial=further,
        widget=widgets.UnfoldAdminTextareaWidget(attrs={"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text=with_code(
            "One a line: a name or JSON pointer (`*` for every name or place), a space, and one of "
            f"{', '.join(f'`{word}`' for word in TREATMENTS)}. For example `/address/*/street dropped`."
        ),
    )
    found[RECORDED + "results_kb"] = forms.IntegerField(
        label="Keep of results, in KB",
        required=False,
        min_value=0,
        max_value=256,
        initial=policy.results_kb,
        widget=widgets.UnfoldAdminIntegerFieldWidget(),
        help_text=f"Encrypted, up to this size. 0: only the commitment to the result. Empty: as {above} says.",
    )
    found[RECORDED + "subject"] = forms.CharField(
        label="Data is about the value of",
        required=False,
        max_length=200,
        initial=policy.subject.argument if policy.subject else "",
        widget=widgets.UnfoldAdminTextInputWidget(),
        help_text=with_code(
            "The argument that names a person, for instance `customer_id`: what is kept can then be erased by its"
            " value. Empty: it belongs to the caller."
        ),
    )
    found[RECORDED + "kind"] = forms.CharField(
        label="Which is a",
        required=False,
        max_length=40,
        initial=policy.subject.kind if policy.subject else "",
        widget=widgets.UnfoldAdminTextInputWidget(),
        help_text=with_code("What such people are called in all tools, for instance `customer`."),
    )
    return found


def _stored(target: Tool | DataSource) -> Policy:
    try:
        return Policy.model_validate(checked(target.recording))
    except PolicyRefused:
        return Policy()


def _choice(label: str, value: str | None, nothing: str) -> forms.ChoiceField:
    choices = [("", nothing), *((word, _LABELS[word]) for word in TREATMENTS)]
    widget = widgets.UnfoldAdminSelectWidget()
    return forms.ChoiceField(label=label, required=False, choices=choices, initial=value or "", widget=widget)


def arguments_of(target: Tool | DataSource) -> list[str]:
    """The top-level arguments of a tool; a data source has none."""
    return list(_properties(target))[:_MOST_ARGUMENTS]


def _properties(target: Tool | DataSource) -> dict[str, Any]:
    if not isinstance(target, Tool) or target.current is None:
        return {}
    found = exact.taken(target.current.definition).get("inputSchema", {}).get("properties", {})
    return found if isinstance(found, dict) else {}


def given_policy(target: Tool | DataSource, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The policy that a filled-in form describes; None for one that says nothing. Raises PolicyRefused."""
    arguments: dict[str, str] = {}
    for number, name in enumerate(arguments_of(target)):
        if how := values.get(f"{_BY_NUMBER}{number}"):
            arguments[name] = how
    for line in str(values.get(RECORDED + "further") or "").splitlines():
        if line.strip():
            name, space, how = line.strip().rpartition(" ")
            if not space:
                raise PolicyRefused(f"{line.strip()!r} is no rule: write a name, a space, and a treatment.")
            arguments[name.strip()] = how
    policy: dict[str, Any] = {"arguments": arguments, "otherwise": values.get(RECORDED + "otherwise") or None}
    policy["results_kb"] = values.get(RECORDED + "results_kb")
    subject, kind = (str(values.get(RECORDED + name) or "").strip() for name in ("subject", "kind"))
    if bool(subject) != bool(kind):
        raise PolicyRefused("Name both the argument that the data is about, and what such people are called.")
    policy["subject"] = {"argument": subject, "kind": kind} if subject else None
    return checked(policy) or None


# --- The example ------------------------------------------------------------------------------------------------------


def recording_example(target: Tool | DataSource) -> SafeString:
    """What a record of a call with made-up arguments holds, under the policy as it is stored."""
    own, above = (target.recording, target.source.recording) if isinstance(target, Tool) else (None, target.recording)
    try:
        policy = effective(own, above)
    except ValueError:
        return SafeString("The stored policy cannot be used: the tool is off until it is mended.")
    arguments = {name: sample(shape) for name, shape in _properties(target).items()}
    recording = compiled(policy, b"an example")
    facts = recording.told(arguments) if recording else {}
    kept = facts.get("some_arguments")
    lines = [
        ("A call with", _pretty(exact.written(arguments))),
        ("Shown in the record", _pretty(facts["shown"]) if "shown" in facts else "nothing"),
        ("Kept encrypted", _pretty(exact.written(arguments) if kept is None else kept) or "nothing"),
        ("Belongs to", f"the {facts['subject'].kind}" if "subject" in facts else "the caller"),
        (
            "Of the result",
            f"the first {policy.results_kb} KB, encrypted" if policy.results_kb else "the commitment only",
        ),
    ]
    rows = format_html_join("", '<tr><th scope="row">{}</th><td class="kept-lines mono">{}</td></tr>', lines)
    return format_html('<table class="recording-example"><tbody>{}</tbody></table>', rows)


def sample(shape: Any) -> Any:
    """A value that the schema could mean."""
    if not isinstance(shape, dict):
        return "…"
    for word in ("default", "example", "const"):
        if word in shape:
            return shape[word]
    for word in ("examples", "enum"):
        if isinstance(shape.get(word), list) and shape[word]:
            return shape[word][0]
    kind = shape.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    match kind:
        case "integer" | "number":
            return 1234567890
        case "boolean":
            return True
        case "array":
            return [sample(shape.get("items"))]
        case "object":
            inner = shape.get("properties")
            return {name: sample(each) for name, each in inner.items()} if isinstance(inner, dict) else {}
    return _SAMPLES.get(str(shape.get("format")), "some text")


def _pretty(raw: str | bytes) -> str:
    """On one line, as long as that is short."""
    if not raw:
        return ""
    short = json.dumps(exact.taken(raw), ensure_ascii=False)
    return short if len(short) <= 80 else json.dumps(exact.taken(raw), indent=2, ensure_ascii=False)
