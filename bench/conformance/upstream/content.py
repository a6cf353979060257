"""What the upstream answers with: texts, the smallest image and sound, resources, prompts, completions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# One red pixel, and one sample of silence.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQIAAAAAAA=="

IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": WAV, "mimeType": "audio/wav"}


def text(said: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": said}


def embedded(uri: str, mime_type: str, said: str) -> dict[str, Any]:
    """A block with a resource in it."""
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": said}}


# --- Resources -------------------------------------------------------------------------------------------------------

WATCHED = "test://watched-resource"
_TEMPLATE = ("test://template/", "/data")

RESOURCES: list[dict[str, Any]] = [
    {"uri": "test://static-text", "name": "static-text", "description": "A text.", "mimeType": "text/plain"},
    {"uri": "test://static-binary", "name": "static-binary", "description": "An image.", "mimeType": "image/png"},
    {"uri": WATCHED, "name": "watched-resource", "description": "It can be subscribed to.", "mimeType": "text/plain"},
]
TEMPLATES: list[dict[str, Any]] = [
    {
        "uriTemplate": "{id}".join(_TEMPLATE),
        "name": "template",
        "description": "Data of an id.",
        "mimeType": "application/json",
    }
]


def contents(uri: str) -> list[dict[str, Any]] | None:
    """What is at the URI; None where there is nothing."""
    known = {
        "test://static-text": {
            "mimeType": "text/plain",
            "text": "This is the content of the static text resource.",
        },
        "test://static-binary": {"mimeType": "image/png", "blob": PNG},
        WATCHED: {"mimeType": "text/plain", "text": "Watched resource content"},
    }
    if uri in known:
        return [{"uri": uri, **known[uri]}]
    head, tail = _TEMPLATE
    identifier = uri.removeprefix(head).removesuffix(tail)
    if uri != f"{head}{identifier}{tail}" or not identifier or "/" in identifier:
        return None
    data = {"id": identifier, "templateTest": True, "data": f"Data for ID: {identifier}"}
    return [{"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}]


# --- Prompts ---------------------------------------------------------------------------------------------------------

ASKING_PROMPT = "test_input_required_result_prompt"
# Each call of `test_trigger_prompt_change` takes it off the list, or puts it back.
CHANGING_PROMPT = {"name": "test_changing_prompt", "description": "It comes and goes."}

Arguments = dict[str, str]
Messages = list[dict[str, Any]]


def user(content: dict[str, Any]) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": content}


def _of_arguments(arguments: Arguments) -> Messages:
    said = f"Prompt with arguments: arg1='{arguments.get('arg1', '')}', arg2='{arguments.get('arg2', '')}'"
    return [user(text(said))]


def _of_resource(arguments: Arguments) -> Messages:
    resource = embedded(arguments.get("resourceUri", ""), "text/plain", "Embedded resource content for testing.")
    return [user(resource), user(text("Please process the embedded resource above."))]


def _argument(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "description": description, "required": True}


PROMPTS: dict[str, tuple[dict[str, Any], Callable[[Arguments], Messages]]] = {
    "test_simple_prompt": (
        {"description": "Without arguments."},
        lambda arguments: [user(text("This is a simple prompt for testing."))],
    ),
    "test_prompt_with_arguments": (
        {"description": "With two arguments.", "arguments": [_argument("arg1", "The first."), _argument("arg2", "2.")]},
        _of_arguments,
    ),
    "test_prompt_with_embedded_resource": (
        {"description": "With a resource in it.", "arguments": [_argument("resourceUri", "Which.")]},
        _of_resource,
    ),
    "test_prompt_with_image": (
        {"description": "With an image in it."},
        lambda arguments: [user(IMAGE), user(text("Please analyze the image above."))],
    ),
}


def completions(ref: dict[str, Any], argument: str, begun: str) -> list[str]:
    """The values that begin so."""
    known = {("test_prompt_with_arguments", "arg1"): ["paris", "park", "party"]}
    values = known.get((str(ref.get("name")), argument), [])
    return [value for value in values if value.startswith(begun)]
