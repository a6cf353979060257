"""A model provider as a LangChain chat model, open for as long as a run needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel

from agents.configuration import OPENAI_URL, api_key_of
from agents.models import ModelProvider
from agents.outgoing import AnswerRefused, http_client
from agents.runs import RunFailed
from agents.script import ScriptError, parse
from agents.scripted import ScriptedModel
from tools.egress import Egress, EgressDenied

_ATTEMPTS_MORE = 1
_LONGEST_REASON = 500


@asynccontextmanager
async def chat_model(provider: ModelProvider, egress: Egress) -> AsyncIterator[BaseChatModel]:
    """The model, ready to be asked. Raises RunFailed when it cannot be made."""
    if provider.is_scripted:
        yield _scripted(provider)
        return
    common: dict[str, Any] = {
        "api_key": api_key_of(provider) or "none",
        "max_tokens": provider.max_output_tokens,
        "timeout": provider.timeout_seconds,
        "max_retries": _ATTEMPTS_MORE,
    }
    if provider.temperature is not None:
        common["temperature"] = provider.temperature
    if provider.kind != ModelProvider.Kind.OPENAI:
        yield _made(provider, **common)
        return
    async with http_client(egress, provider.timeout_seconds) as client:
        where = {"base_url": provider.base_url or OPENAI_URL, "http_async_client": client}
        yield _made(provider, **common, **where, stream_usage=True, use_responses_api=False)


def _scripted(provider: ModelProvider) -> ScriptedModel:
    try:
        return ScriptedModel(steps=parse(provider.script))
    except ScriptError as error:
        raise RunFailed("script_error", f"The script of {provider.name} cannot be used: {error}") from error


def _made(provider: ModelProvider, **options: Any) -> BaseChatModel:
    try:
        made: BaseChatModel = init_chat_model(provider.model, model_provider=provider.kind, **options)
    except ImportError as error:
        package = f"langchain-{provider.kind.replace('_', '-')}"
        message = f"The package for {provider.get_kind_display()} is not installed: pip install {package}"
        raise RunFailed("model_not_installed", message) from error
    return made


def failure_of(error: Exception, provider: ModelProvider) -> RunFailed:
    """What went wrong with the model, under a stable word and without the provider's key."""
    if isinstance(error, ScriptError):
        return RunFailed("script_error", str(error))
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, EgressDenied):
            return RunFailed("egress_denied", f"The model may not be reached: {cause}")
        if isinstance(cause, AnswerRefused):
            return RunFailed("bad_model_answer", str(cause))
    if any("Timeout" in type(cause).__name__ for cause in causes):
        return RunFailed("model_timeout", f"The model kept silent for {provider.timeout_seconds} seconds.")
    if any("Connect" in type(cause).__name__ for cause in causes):
        return RunFailed("model_unavailable", _told("The model cannot be reached", causes[-1], provider))
    return RunFailed("model_failed", _told("The model did not answer", error, provider))


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _told(what: str, error: BaseException, provider: ModelProvider) -> str:
    """The server wrote the reason: no key in it, also none that is cut, and nothing that cannot be stored or shown."""
    reason = str(error)
    if key := api_key_of(provider):
        reason = reason.replace(key, "…")
    words = " ".join(reason.split())[:_LONGEST_REASON]
    shown = "".join(each if each.isprintable() else "�" for each in words)
    return f"{what}: {shown or type(error).__name__}"
