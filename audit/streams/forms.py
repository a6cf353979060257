"""The form of a stream: its own columns, and the options of both kinds, of which the page shows those that matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.utils.html import format_html
from unfold import widgets  # type: ignore[import-untyped]
from unfold.forms import BaseDialogForm  # type: ignore[import-untyped]

from audit.models import Record
from audit.streams.models import Stream
from audit.streams.options import OPTIONS, Refused, configure, secret_names, stored_secrets
from audit.theme import with_code

if TYPE_CHECKING:
    BaseForm = forms.ModelForm[Stream]
else:
    BaseForm = forms.ModelForm

CLEAR = "clear_"
_PEM = {"rows": 5, "class": "mono", "spellcheck": "false", "placeholder": "-----BEGIN CERTIFICATE-----"}
# As the page has them: the receiver first, then what few need.
OPTION_NAMES = (
    "signing_secret",
    "authorization",
    "ca",
    "server_name",
    "client_certificate",
    "client_key",
    "facility",
    "max_message_bytes",
    "resend",
    "batch_records",
    "timeout_seconds",
)
_LABELS = {
    "ca": "CA certificates",
    "client_key": "Key of the client certificate",
    "resend": "Repeated on a new connection",
    "max_message_bytes": "Longest message, in bytes",
    "batch_records": "Most records in a request",
    "timeout_seconds": "Patience, in seconds",
}


def kinds_with(option: str) -> list[str]:
    """The kinds that have the option."""
    return [str(kind) for kind, options in OPTIONS.items() if option in options.model_fields]


def _field(name: str) -> forms.Field:
    """A form field for an option, as it is declared."""
    kind = kinds_with(name)[0]
    shape = OPTIONS[kind].model_json_schema()["properties"][name]
    common: dict[str, Any] = {
        "label": _LABELS.get(name, name.replace("_", " ").capitalize()),
        "help_text": with_code(shape.get("description", "")),
        "required": False,
    }
    if name in secret_names(kind):
        if name == "client_key":
            return forms.CharField(
                **common, widget=widgets.UnfoldAdminTextareaWidget(attrs={**_PEM, "placeholder": ""})
            )
        return forms.CharField(
            **common, strip=False, widget=widgets.UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
        )
    if shape.get("type") == "integer":
        return forms.IntegerField(**common, initial=shape["default"], widget=widgets.UnfoldAdminIntegerFieldWidget())
    pem = name in ("ca", "client_certificate")
    widget = widgets.UnfoldAdminTextareaWidget(attrs=_PEM) if pem else widgets.UnfoldAdminTextInputWidget()
    return forms.CharField(**common, widget=widget)


class Words(forms.CharField):
    """A list of words in one line."""

    def prepare_value(self, value: Any) -> Any:
        """With spaces between."""
        return " ".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """Separated by spaces or commas."""
        return (value or "").replace(",", " ").split()


class _StreamForm(BaseForm):
    """All of it is checked together."""

    kinds = forms.MultipleChoiceField(
        label="Kinds",
        required=False,
        choices=Record.Kind.choices,
        widget=widgets.UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="None chosen: all.",
    )
    decisions = forms.MultipleChoiceField(
        label="Decisions",
        required=False,
        choices=Record.Decision.choices,
        widget=widgets.UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="None chosen: all.",
    )
    tools = Words(
        required=False,
        widget=widgets.UnfoldAdminTextInputWidget(),
        help_text="Names, with spaces between. Empty: all, also records that name no tool.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        new = self.instance._state.adding
        self._stored = None if new else Stream(**{name: getattr(self.instance, name) for name in _KEPT})
        if "alarm_minutes" in self.fields:
            self.fields["alarm_minutes"].label = "Alarm after, in minutes"
        known = {} if new else stored_secrets(self.instance)
        for name in OPTION_NAMES:
            if name not in self.fields:
                continue
            field = self.fields[name]
            if name in known:
                field.help_text = format_html("{} A value is stored. Leave empty to keep it.", field.help_text)
            elif not new and name in self.instance.options:
                field.initial = self.instance.options[name]

    def _given(self) -> tuple[dict[str, Any], dict[str, str | None]]:
        """Options and secrets of the kind that is chosen."""
        kind = self.instance.kind
        hidden = secret_names(kind)
        names = [name for name in OPTION_NAMES if kind in kinds_with(name)]
        values = {name: self.cleaned_data.get(name) for name in names}
        given = {name: value for name, value in values.items() if value not in (None, "")}
        secrets: dict[str, str | None] = {name: given.pop(name) for name in hidden if name in given}
        secrets |= {name: None for name in hidden if self.cleaned_data.get(CLEAR + name) and name not in secrets}
        return given, secrets

    def _post_clean(self) -> None:
        """After the fields are in the instance."""
        super()._post_clean()  # type: ignore[misc]
        if self.errors or not self.instance.kind:
            return
        try:
            configure(self.instance, self._stored, *self._given())
        except Refused as refused:
            for name, said in refused.errors.items():
                self.add_error(name if name in self.fields else None, said)


_KEPT = ("kind", "address", "options")
_REMOVABLE = ("authorization", "client_key")
# One field for each option, and a switch for each secret that can be removed.
OPTION_FIELDS: dict[str, forms.Field] = {name: _field(name) for name in OPTION_NAMES} | {
    CLEAR + name: forms.BooleanField(
        required=False,
        label=f"Remove the stored {_LABELS.get(name, name).lower()}",
        widget=widgets.UnfoldBooleanSwitchWidget(),
    )
    for name in _REMOVABLE
}
StreamForm: type[Any] = type("StreamForm", (_StreamForm,), dict(OPTION_FIELDS))


class MoveForm(BaseDialogForm):  # type: ignore[misc]
    """From when on it should send."""

    to = forms.DateTimeField(
        label="Send from",
        widget=widgets.UnfoldAdminTextInputWidget(attrs={"placeholder": "2026-03-01 08:00"}),
        help_text="In UTC. What was written from then on is sent, once more if it was sent before; nothing earlier.",
    )
