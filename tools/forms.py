"""Forms that follow from what a connector declares: one field for each of its options, without a line for any kind."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.utils.html import format_html
from django.utils.safestring import SafeString
from pydantic import BaseModel
from unfold import widgets  # type: ignore[import-untyped]

from audit.theme import with_code
from tools.configuration import Refused, configure, specify, stored_secrets
from tools.connectors.registry import connector_class, secret_names
from tools.models import DataSource, Tool
from tools.recording import PolicyRefused
from tools.recording_form import RECORDED, given_policy, recording_fields

PREFIX = "option_"
CLEAR = "clear_"
_LONG_TEXT = 500
_ACRONYMS = frozenset({"url", "tls", "id", "api", "http", "ca"})


class PrettyJSON(json.JSONEncoder):
    """JSON as people write it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "indent": 2, "ensure_ascii": False, "sort_keys": False})


def fields_of(model: type[BaseModel], values: dict[str, Any], stored: set[str]) -> dict[str, forms.Field]:
    """Form fields for the fields of `model`; `stored` are the secrets that have a value, which is never shown."""
    schema = model.model_json_schema(by_alias=False)
    found: dict[str, forms.Field] = {}
    for name, declared in schema.get("properties", {}).items():
        shape = _resolved(declared, schema)
        alias = model.model_fields[name].alias or name
        label = _label(alias)
        required = name in schema.get("required", ())
        common = {"label": label, "help_text": with_code(declared.get("description", "")), "required": required}
        if shape.get("format") == "password":
            found |= _secret_fields(name, common, name in stored)
            continue
        found[PREFIX + name] = field = _field(shape, common)
        field.initial = values.get(name, values.get(alias, declared.get("default")))
    return found


def _label(name: str) -> str:
    words = name.split("_")
    text = " ".join(word.upper() if word in _ACRONYMS else word for word in words)
    return text[:1].upper() + text[1:]


def _resolved(declared: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The shape without `| None` and `$ref`."""
    choices = [each for each in declared.get("anyOf", ()) if each.get("type") != "null"]
    if len(choices) == 1:
        declared = {**declared, **choices[0]}
    if "$ref" in declared:
        declared = {**declared, **schema["$defs"][declared["$ref"].rpartition("/")[2]]}
    if "items" in declared:
        declared = {**declared, "items": _resolved(declared["items"], schema)}
    return declared


def _secret_fields(name: str, common: dict[str, Any], stored: bool) -> dict[str, forms.Field]:
    widget = widgets.UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
    hint = "A value is stored. Leave empty to keep it." if stored else "Not set."
    said = format_html("{} {}", common["help_text"], hint)
    needed = common["required"] and not stored
    field = forms.CharField(**{**common, "help_text": said, "required": needed}, widget=widget, strip=False)
    if not stored or common["required"]:
        return {PREFIX + name: field}
    remove = forms.BooleanField(
        required=False, label=f"Remove the stored {common['label'].lower()}", widget=widgets.UnfoldBooleanSwitchWidget()
    )
    return {PREFIX + name: field, CLEAR + name: remove}


def _field(shape: dict[str, Any], common: dict[str, Any]) -> forms.Field:
    if "enum" in shape:
        choices = [(value, str(value)) for value in shape["enum"]]
        return forms.ChoiceField(**common, choices=choices, widget=widgets.UnfoldAdminSelectWidget())
    match shape.get("type"):
        case "boolean":
            return forms.BooleanField(**{**common, "required": False}, widget=widgets.UnfoldBooleanSwitchWidget())
        case "integer":
            limits: dict[str, Any] = {"min_value": shape.get("minimum"), "max_value": shape.get("maximum")}
            return forms.IntegerField(**common, **limits, widget=widgets.UnfoldAdminIntegerFieldWidget())
        case "number":
            return forms.FloatField(**common, widget=widgets.UnfoldAdminDecimalFieldWidget())
        case "string":
            return forms.CharField(**common, max_length=shape.get("maxLength"), widget=_text_widget(shape))
    return forms.JSONField(
        **{**common, "required": False, "help_text": format_html("{} {}", common["help_text"], _as_json(shape))},
        encoder=PrettyJSON,
        widget=widgets.UnfoldAdminTextareaWidget(attrs={"rows": 12, "class": "mono", "spellcheck": "false"}),
    )


def _as_json(shape: dict[str, Any]) -> SafeString:
    """How the value is written; of a list of objects, what each of them can have."""
    names = shape.get("items", {}).get("properties", {})
    if not names:
        return SafeString("As JSON.")
    needed = shape["items"].get("required", ())
    said = ", ".join(f"`{name}`" + (" (required)" if name in needed else "") for name in names)
    return with_code(f"As JSON: a list of objects with {said}.")


def _text_widget(shape: dict[str, Any]) -> forms.Widget:
    longest = shape.get("maxLength") or 0
    if longest <= _LONG_TEXT or shape.get("format") == "uri":
        return widgets.UnfoldAdminTextInputWidget()  # type: ignore[no-any-return]
    code = {"class": "mono", "spellcheck": "false"} if longest > 10_000 else {}
    return widgets.UnfoldAdminTextareaWidget(  # type: ignore[no-any-return]
        attrs={"rows": 10 if code else 4, **code}
    )


class _DeclaredForm(forms.ModelForm):  # type: ignore[type-arg]
    """A model's own fields, and those that the connector declares."""

    declared: type[BaseModel]

    def given(self) -> dict[str, Any]:
        """The values of the declared fields; what was left empty takes its default."""
        names = (name for name in self.cleaned_data if name.startswith(PREFIX))
        found = {name.removeprefix(PREFIX): self.cleaned_data[name] for name in names}
        return {name: value for name, value in found.items() if value is not None and value != ""}

    def clean(self) -> dict[str, Any]:
        """The policy of recording, and what the connector declares."""
        super().clean()
        if any(name.startswith(RECORDED) for name in self.fields) and not self.errors:
            try:
                self.instance.recording = given_policy(self.instance, self.cleaned_data)
            except PolicyRefused as refused:
                self.add_error(None, f"What is recorded: {refused}")
        return self.cleaned_data

    def refuse(self, refused: Refused) -> None:
        """Show each error at its field."""
        for name, said in refused.errors.items():
            place = PREFIX + name if PREFIX + name in self.fields else None
            self.add_error(place, said if place or not name else [f"{name}: {each}" for each in said])


class DataSourceForm(_DeclaredForm):
    """A data source with the options of its kind."""

    def clean(self) -> dict[str, Any]:
        """Hand options and secrets to the connector for checking."""
        super().clean()
        if any(name.startswith(PREFIX) for name in self.errors):
            return self.cleaned_data
        hidden = secret_names(self.instance.kind)
        given = self.given()
        secrets: dict[str, str | None] = {name: given.pop(name) for name in hidden if name in given}
        secrets |= {name: None for name in hidden if self.cleaned_data.get(CLEAR + name) and name not in secrets}
        try:
            configure(self.instance, given, secrets)
        except Refused as refused:
            self.refuse(refused)
        return self.cleaned_data


class ToolForm(_DeclaredForm):
    """A tool with what its connector must know about it."""

    def clean(self) -> dict[str, Any]:
        """Hand the spec to the connector for checking."""
        super().clean()
        if not any(name.startswith(PREFIX) for name in self.fields) or self.errors:
            return self.cleaned_data
        trial = Tool(source=self.instance.source, name=self.cleaned_data["name"])
        try:
            specify(trial, self.given())
            self.instance.spec = trial.spec
        except Refused as refused:
            self.refuse(refused)
        return self.cleaned_data


def source_form(source: DataSource) -> type[DataSourceForm]:
    """The form for this source; a new one has its kind set."""
    declared = connector_class(source.kind).Options
    fields = fields_of(declared, source.options, set(stored_secrets(source)))
    return type("DataSourceForm", (_with_instance(DataSourceForm, source),), fields | recording_fields(source))


def tool_form(tool: Tool) -> type[ToolForm]:
    """The form for this tool; a new one has its source set. The spec of a discovered tool is not for people."""
    connector = connector_class(tool.source.kind)
    fields = {} if connector.discovers else fields_of(connector.ToolSpec, tool.spec, set())
    return type("ToolForm", (_with_instance(ToolForm, tool),), fields | recording_fields(tool))


def declared_fields(form: type[Any]) -> list[str]:
    """The names of what the connector asks for."""
    return [name for name in form.base_fields if name.startswith((PREFIX, CLEAR))]


def recorded_fields(form: type[Any]) -> list[str]:
    """The names of what says what the ledger keeps."""
    return [name for name in form.base_fields if name.startswith(RECORDED)]


def _with_instance(base: Any, made: Any) -> Any:
    """A form that starts from `made` where the admin gives it no instance."""

    class Started(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("instance") is None:
                kwargs["instance"] = made
            super().__init__(*args, **kwargs)

    return Started
