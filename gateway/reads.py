"""What clients ask of prompts and resources: the parameters of a request become what the pipeline is told of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway import wire
from gateway.wire import Message, WireError
from tools.connectors.base import Kind
from tools.templates import is_uri

METHODS = frozenset({"prompts/get", "resources/read", "completion/complete"})


class Read(NamedTuple):
    """What is asked for: of which prompt, resource or template, with which parameters."""

    kind: Kind
    name: str
    params: dict[str, Any]


def read_of(message: Message) -> Read:
    """The request in the form of its method, with what the method knows and nothing else. Raises WireError."""
    match message.method:
        case "prompts/get":
            return _prompt(message.params)
        case "resources/read":
            return _resource(message.params)
    return _completion(message.params)


def _prompt(params: dict[str, Any]) -> Read:
    name, arguments = params.get("name"), params.get("arguments", {})
    if not isinstance(name, str) or not _is_texts(arguments):
        raise _wrong("prompts/get needs a name (string), and its arguments are texts.")
    return Read("prompt", name, {"name": name, "arguments": arguments})


def _resource(params: dict[str, Any]) -> Read:
    return Read("resource", uri := _uri(params.get("uri")), {"uri": uri})


def _completion(params: dict[str, Any]) -> Read:
    ref, argument, context = params.get("ref"), params.get("argument"), params.get("context")
    if not isinstance(ref, dict) or not _is_argument(argument):
        raise _wrong("completion/complete needs a ref (object), and an argument with name and value (strings).")
    kept: dict[str, Any] = {"argument": argument}
    if context is not None:
        if not isinstance(context, dict) or not _is_texts(context.get("arguments", {})):
            raise _wrong("The arguments of the context are texts.")
        kept["context"] = context
    if ref.get("type") == "ref/prompt" and isinstance(name := ref.get("name"), str):
        return Read("prompt", name, {"ref": ref, **kept})
    if ref.get("type") == "ref/resource":
        uri = _uri(ref.get("uri"))
        return Read("template" if "{" in uri else "resource", uri, {"ref": ref, **kept})
    raise _wrong("A ref is a ref/prompt with a name, or a ref/resource with a uri.")


def _uri(value: Any) -> str:
    if not isinstance(value, str) or not is_uri(value):
        raise _wrong("A uri has a scheme and visible ASCII characters, at most 1,024.")
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_argument(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("name", "value"))


def _wrong(said: str) -> WireError:
    return WireError(wire.INVALID_PARAMS, said, status=200)
