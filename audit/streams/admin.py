"""Streams in the admin: where the ledger is forwarded to, how far that is, and what to do when it is not."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from unfold.contrib.filters.admin import BooleanRadioFilter, ChoicesDropdownFilter  # type: ignore[import-untyped]

from audit.doors import RecordedAdmin
from audit.streams.forms import CLEAR, OPTION_FIELDS, OPTION_NAMES, MoveForm, StreamForm, kinds_with
from audit.streams.models import Stream
from audit.streams.options import stored_secrets
from audit.streams.steering import (
    ALARMS,
    Standing,
    acknowledge_gap,
    ask_to_test,
    begin,
    record_test,
    rewind,
    standings,
)
from audit.theme import action, badge, dialog, display, go_to, mono

_DOOR = "admin"
_ALARMED = {"gap": "Records missed", "lagging": "Behind", "failing": "Failing"}
_STATE = ("standing", "lag", "place", "acknowledged", "failure")


@admin.register(Stream)
class StreamAdmin(RecordedAdmin):
    """Streams to a SIEM."""

    form = StreamForm
    list_display = ("name", "kind", "address", "standing", "lag", "acknowledged")
    list_filter = (("kind", ChoicesDropdownFilter), ("enabled", BooleanRadioFilter))
    list_filter_submit = True
    list_select_related = ("state",)
    search_fields = ("name", "description", "address")
    readonly_fields = _STATE
    actions_detail = ("send_test", "move", "acknowledge")
    conditional_fields = {
        name: " || ".join(f"kind == '{kind}'" for kind in kinds_with(name.removeprefix(CLEAR)))
        for name in OPTION_FIELDS
        if len(kinds_with(name.removeprefix(CLEAR))) == 1
    }
    empty_icon = "cell_tower"
    empty_title = "No streams yet"
    empty_text = "A stream forwards the ledger to a SIEM, record by record: by syslog over TLS, or to a webhook."

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may only look sees no fields for secrets."""
        own = (
            ("Stream", {"fields": ("name", "description", "kind", "address", "enabled", "alarm_minutes")}),
            ("How it is sent", {"fields": self._option_fields(request, obj)}),
            ("What is sent", {"fields": ("kinds", "decisions", "tools")}),
        )
        return own if obj is None else (("State", {"fields": _STATE}), *own)

    def _option_fields(self, request: HttpRequest, obj: Any) -> tuple[str, ...]:
        if obj is not None and not self.has_change_permission(request, obj):
            return ()
        known = stored_secrets(obj) if obj is not None else {}
        clear = tuple(name for name in OPTION_FIELDS if name.removeprefix(CLEAR) in known and name.startswith(CLEAR))
        if obj is None:
            return OPTION_NAMES
        return (*(name for name in OPTION_NAMES if obj.kind in kinds_with(name)), *clear)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The kind stays what it is."""
        form = super().get_form(request, obj, change, **kwargs)
        if obj is not None and (kind := form.base_fields.get("kind")):
            kind.choices = [(obj.kind, obj.get_kind_display())]
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """A new one begins with what is sealed from now on."""
        super().save_model(request, obj, form, change)
        begin(obj)

    # --- What can be done ---------------------------------------------------------------------------------------------

    def has_send_test_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A permission of its own, since it connects to the outside."""
        return request.user.has_perm("audit.test_stream")

    def has_move_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A permission of its own: records could be passed over."""
        return request.user.has_perm("audit.rewind_stream")

    @action(
        description="Send a test message",
        permissions=["send_test"],
        icon="send",
        dialog=dialog(
            "Send a test message?",
            "The worker sends a message that is no record, with the settings that are stored.",
            "Send",
        ),
    )
    def send_test(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """Send it, and say what came of it."""
        stream = Stream.objects.get(pk=object_id)
        tested = ask_to_test(stream, request.user.get_username())
        record_test(stream, tested, door=_DOOR, request=request)
        messages.add_message(request, messages.SUCCESS if tested.ok else messages.ERROR, tested.message)
        return _back(object_id)

    @action(
        description="Set the place",
        permissions=["move"],
        icon="history",
        dialog=dialog(
            "Send from another time on?",
            "Back: records are sent once more. Ahead: what lies between is never sent. It is recorded.",
            "Set the place",
            MoveForm,
        ),
    )
    def move(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """Set the place to a time."""
        moved = rewind(Stream.objects.get(pk=object_id), form.cleaned_data["to"], door=_DOOR, request=request)
        messages.success(
            request, f"The next record that is sent has the place {moved.after:,}; it was {moved.before:,}."
        )
        return _back(object_id)

    @action(
        description="Take note of the gap",
        permissions=["move"],
        icon="done",
        dialog=dialog(
            "Take note of missed records?", "Ends the alarm of a gap. That you did is recorded.", "Take note"
        ),
    )
    def acknowledge(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """End the alarm of a gap."""
        missed = acknowledge_gap(Stream.objects.get(pk=object_id), door=_DOOR, request=request)
        said = f"{missed:,} missed records are noted." if missed else "No record was missed."
        messages.success(request, said)
        return _back(object_id)

    # --- Columns ------------------------------------------------------------------------------------------------------

    def _standing(self, stream: Stream) -> Standing:
        return standings()[stream.pk]

    @display(description="State")
    def standing(self, stream: Stream) -> SafeString:
        """Off, well, or which alarm."""
        now = self._standing(stream)
        if not stream.enabled:
            return badge("Off", "grey")
        if now.alarm:
            return badge(_ALARMED[now.alarm], "red", ALARMS[now.alarm])
        if stream.state.failing_since:
            return badge("Retrying", "orange", stream.state.error)
        return badge("Delivers", "green")

    @display(description="Lag")
    def lag(self, stream: Stream) -> str:
        """In records and time."""
        now = self._standing(stream)
        if not now.lag_records:
            return "None"
        return f"{now.lag_records:,} records, {_span(now.lag_seconds)}"

    @display(description="Place")
    def place(self, stream: Stream) -> str:
        """What is sent next, and how much was."""
        state = stream.state
        missed = f", {state.missed:,} records were gone before they could be sent" if state.missed else ""
        return f"Next is the sealed record {state.cursor:,}. {state.number - 1:,} messages were acknowledged{missed}."

    @display(description="Last acknowledged")
    def acknowledged(self, stream: Stream) -> str:
        """When the receiver last took something."""
        at = stream.state.acknowledged_at
        return f"{at:%Y-%m-%d %H:%M:%S}" if at else "Never"

    @display(description="Last failure")
    def failure(self, stream: Stream) -> SafeString | str:
        """When, and why."""
        state = stream.state
        if not state.error:
            return "None since it last delivered"
        since = f"for {timesince(state.failing_since)}" if state.failing_since else ""
        return format_html("{} {}", mono(state.error), since)


def _span(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def _back(object_id: str) -> HttpResponse:
    return go_to(reverse("admin:audit_stream_change", args=(object_id,)))
