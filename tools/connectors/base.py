"""What every connector is: options, how to check it, what it offers, and how to call it."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationInfo

from tools.egress import Egress, is_closed

# The context in which pydantic validates options that somebody saves: then what cannot work any more is refused, and
# what can still be repaired outside (a setting, a rule) is not told only by the calls.
SAVING = "saving"


class ConnectorError(Exception):
    """A call or a check that failed outside. `code` is the stable word; the message is fit for the caller.

    `refusal` is the JSON-RPC error of the upstream, where that is how it refused.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        sent: bool = True,
        refusal: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.refusal = refusal
        # Whether the upstream may have acted on it.
        self.sent = sent


class Options(BaseModel):
    """Base of a kind's options. Unknown options are refused; secrets are `SecretStr` fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def refuse_closed(host: str, info: ValidationInfo) -> None:
    """For the validator of an option that names a host: what no call can reach is not saved. Raises ValueError."""
    if info.context == SAVING and is_closed(host):
        raise ValueError(f"{host} is the address of a metadata service or of the local link, which is never reached")


class Spec(BaseModel):
    """Base of what a kind must know about one of its tools."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Source:
    """A data source as a connector sees it: its validated options with their secrets."""

    id: uuid.UUID
    name: str
    options: Any
    timeout_seconds: int


class ClientError(Exception):
    """The client would not or could not answer: the JSON-RPC error for whoever asked."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(message)[:500] if isinstance(message := error.get("message"), str) else "")
        self.error = error


class Client(ABC):
    """Whoever called, as far as an upstream may turn to them while it works on the call."""

    # What the client declared that it can be asked for; empty: nothing.
    capabilities: Mapping[str, Any]
    # The least level of log messages that the client wants (RFC 5424); None: none at all.
    log_level: str | None = None
    # Whether the client has asked for that level itself.
    chose_level: bool = False
    wants_progress: bool = False
    # Whether questions are the result of the call, and their answers come with the next one (MCP 2026-07-28): then
    # nothing can be asked of the client while the call goes on.
    answers_later: bool = False
    # Whether several questions may wait for it at the same time.
    asks_together: bool = False
    # How much was passed on to the client, and asked of it.
    told = asked = 0

    @abstractmethod
    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Pass a notification about the call on. Never blocks; what the client does not want is dropped.

        Progress comes without a token: the client's own is put in.
        """

    def linger(self) -> None:  # noqa: B027 - not every client can
        """The upstream closed its stream before the answer, to be asked again: the client may do as we do."""

    @abstractmethod
    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The client's answer to elicitation/create, sampling/createMessage or roots/list. Raises ClientError."""


class Context(NamedTuple):
    """What a connector may tell the outside about a call. Nothing of the caller's credentials."""

    call_id: uuid.UUID
    deadline_seconds: float
    actor: str
    traceparent: str | None = None
    tool: str = ""
    on_behalf_of: str | None = None
    # None for callers that can be told and asked nothing: programs inside, and clients that want nothing of it.
    client: Client | None = None
    # `inputResponses` and `requestState`, both as the upstream is to get them, of a call that goes on (MCP 2026-07-28).
    continuation: Mapping[str, Any] | None = None
    # What the caller adds for whoever answers, as `_meta` has it.
    extra: Mapping[str, Any] | None = None


Kind = Literal["tool", "prompt", "resource", "template"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source offers: its definition as it came, and what is needed to call it. Resources are named by URI.

    `fault` says why it cannot be used as it is offered.
    """

    name: str
    definition: dict[str, Any]
    spec: dict[str, Any]
    effect: str | None = None
    kind: Kind = "tool"
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The `result` object of a call (CallToolResult, or that of the other methods) as the upstream gave it."""

    content: dict[str, Any]
    is_error: bool
    notes: dict[str, Any] = field(default_factory=dict)


def _nobody(code: str, detail: dict[str, Any]) -> None:
    """Nobody listens."""


class Ear(Protocol):
    """Hears what a source says without being asked."""

    def began(self) -> None:
        """It is heard from now on, for the first time: nobody knows what it said before."""

    def lists_changed(self) -> None:
        """It offers something else than before, or may do so."""

    def resource_updated(self, uri: str) -> None:
        """The resource is not as it was, or may not be."""


class Connector(ABC):
    """One connection to the outside world, kept open in each process that uses it. All methods raise ConnectorError."""

    kind: ClassVar[str]
    label: ClassVar[str]
    description: ClassVar[str]
    Options: ClassVar[type[Options]]
    ToolSpec: ClassVar[type[Spec]]
    # Whether tools come from the source (`discover`) or are written by an administrator (`define`).
    discovers: ClassVar[bool]
    # Whether sources of this kind say something without being asked.
    hears: ClassVar[bool] = False
    # Whether each process has an upstream of its own: what that says, the others do not hear.
    is_own: ClassVar[bool] = False
    # Whoever keeps connectors open may want to hear what happens to them: a code, and what there is to say about it.
    tell: Callable[[str, dict[str, Any]], None] = staticmethod(_nobody)
    # Calls under way that may take longer than calls do.
    long_calls = 0

    def __init__(self, source: Source, egress: Egress) -> None:
        self.source = source
        self.egress = egress

    @property
    def asks_meanwhile(self) -> bool:
        """Whether the source may turn to the client in the middle of a call, and wait for the answer."""
        return False

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """While a long call is under way, the connector is not closed, even if its source has changed since."""
        self.long_calls += 1
        try:
            yield
        finally:
            self.long_calls -= 1

    @abstractmethod
    async def check(self) -> str:
        """Connect and return one sentence about what was found."""

    async def discover(self) -> list[Offer]:
        """The tools, prompts and resources that the source offers."""
        return []

    @classmethod
    def define(cls, name: str, spec: Spec) -> dict[str, Any] | None:
        """The MCP definition of a hand-written tool; None when definitions come from the source. Raises ValueError."""
        return None

    @abstractmethod
    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """Carry out one call within `context.deadline_seconds`. Cancelling it stops it outside as well."""

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        """One of the requests that are about prompts and resources; only kinds that offer them are asked."""
        raise NotImplementedError

    def listen(self, ear: Ear | None) -> None:  # noqa: B027 - not every kind hears
        """Tell `ear` from now on what the source says; with None, hear no more."""

    async def watch(self, uri: str) -> None:
        """Have the source say when the resource changes. Raises ConnectorError where it will not."""
        raise ConnectorError("upstream_refused", "The source does not tell of changes of its resources.")

    def unwatch(self, uri: str) -> None:  # noqa: B027 - not every kind hears
        """It need not say so any more."""

    def watch_along(self, uris: frozenset[str]) -> None:  # noqa: B027 - not every kind hears
        """Have the source tell of these resources too, watched at other processes; nothing is started for it."""

    async def close(self) -> None:  # noqa: B027 - not every kind holds something open
        """Let go of what is open."""
