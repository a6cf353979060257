"""The form of a model provider: its key can be given and removed, and is never shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget  # type: ignore[import-untyped]

from agents.configuration import Refused, api_key_of, check_provider, set_api_key
from agents.models import ModelProvider

if TYPE_CHECKING:
    BaseForm = forms.ModelForm[ModelProvider]
else:
    BaseForm = forms.ModelForm

_KEPT = ("kind", "base_url")


class ModelProviderForm(BaseForm):
    """All of it is checked together."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        max_length=2000,
        strip=True,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )
    clear_api_key = forms.BooleanField(label="Remove the key", required=False, widget=UnfoldBooleanSwitchWidget())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stored = ModelProvider(**{name: getattr(self.instance, name) for name in _KEPT}) if self._known else None
        is_set = self._known and api_key_of(self.instance) is not None
        if "api_key" in self.fields:
            self.fields["api_key"].help_text = "Set. Leave it empty to keep it." if is_set else "Not set."

    @property
    def _known(self) -> bool:
        return not self.instance._state.adding

    def clean(self) -> dict[str, Any]:
        """Give the key to the provider, and let it be checked with the rest."""
        cleaned = super().clean() or {}
        given, cleared = cleaned.get("api_key"), bool(cleaned.get("clear_api_key"))
        self._key = given or (None if cleared or not self._known else api_key_of(self.instance))
        self._key_given = bool(given) or cleared
        return cleaned

    def _post_clean(self) -> None:
        """After the fields are in the instance."""
        super()._post_clean()  # type: ignore[misc]
        if self._key_given:
            set_api_key(self.instance, self._key)
        if self.errors:
            return
        try:
            check_provider(self.instance, self._stored, self._key_given)
        except Refused as refused:
            for name, said in refused.errors.items():
                self.add_error(name if name in self.fields else None, said)
