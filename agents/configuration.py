"""What a model provider is set up with: the one way in for admin and REST."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from agents.models import ModelProvider
from agents.script import ScriptError, parse
from keyring.keys import DecryptionError

OPENAI_URL = "https://api.openai.com/v1"
_KEY = "api_key"


class Refused(ValueError):
    """`errors` says what is wrong with each field."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {said}" for name, said in errors.items()))
        self.errors = dict(errors)


def api_key_of(provider: ModelProvider) -> str | None:
    """The key, if there is one that can be decrypted."""
    try:
        found: dict[str, Any] = provider.secrets or {}
    except DecryptionError:
        return None
    return found.get(_KEY)


def set_api_key(provider: ModelProvider, key: str | None) -> None:
    """Set or remove the key, unsaved."""
    provider.secrets = {_KEY: key} if key else None


def check_provider(provider: ModelProvider, before: ModelProvider | None, key_given: bool) -> None:
    """Refuse what cannot work, and a key that would be sent to another address than before. Raises Refused."""
    errors: dict[str, str] = {}
    if before is not None and before.kind != provider.kind:
        errors["kind"] = "The kind is fixed: make another provider."
    if provider.is_scripted:
        errors |= _script_errors(provider)
    elif not provider.model:
        errors["model"] = "Name the model, as its provider calls it."
    if provider.base_url and (wrong := _url_error(provider)):
        errors["base_url"] = wrong
    moved = before is not None and before.base_url != provider.base_url
    if moved and provider.secrets and not key_given:
        errors[_KEY] = "The address changed: give the key again, so that it is not sent elsewhere."
    if errors:
        raise Refused(errors)


def _script_errors(provider: ModelProvider) -> dict[str, str]:
    try:
        parse(provider.script)
    except ScriptError as error:
        return {"script": str(error)}
    return {_KEY: "A scripted model needs no key."} if provider.secrets else {}


def _url_error(provider: ModelProvider) -> str | None:
    if provider.kind != ModelProvider.Kind.OPENAI:
        return "Only an OpenAI-compatible server has an address of its own."
    try:
        parts = urlsplit(provider.base_url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
        parts = urlsplit("")
    if not sound:
        return "Give an http or https URL, such as https://llm.example.com/v1."
    if parts.username or parts.password or parts.query or parts.fragment:
        return "Give the URL without user name, password, query and fragment."
    return None
