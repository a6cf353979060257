"""The demo's upstream MCP server, so that an installation has something real to govern.

`python -m mcpsite.demo.upstream --port P` or `--fd N`. Streamable HTTP by the official SDK, which answers both eras of
the protocol; loopback only, and not without its bearer token. It keeps no sessions, so that a restart goes unnoticed.
"""

from __future__ import annotations

import argparse
import hmac
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    PromptReference,
    ResourceTemplateReference,
    ToolAnnotations,
)
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcpsite import env
from mcpsite.demo import office

_HEALTH_PATH = "/healthz"
_SHORTEST_TOKEN = 16
_MARKDOWN, _JSON = "text/markdown", "application/json"

_Currency = Annotated[str, Field(pattern="^[A-Za-z]{3}$", description="ISO 4217 code, e.g. `EUR`.")]
_Ticket = Annotated[int, Field(ge=1, description="Number of the ticket.")]
_Text = Annotated[str, Field(min_length=1, max_length=4000)]


@contextmanager
def _told() -> Iterator[None]:
    """What the office says becomes the tool's own error; anything else stays on the server."""
    try:
        yield
    except office.OfficeError as error:
        raise ToolError(str(error)) from error


def _reads() -> ToolAnnotations:
    return ToolAnnotations(read_only_hint=True, open_world_hint=False)


def _writes(*, open_world: bool) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=open_world
    )


def build_server(folder: Path) -> MCPServer:
    """The server with its tools; notes and replies go to `folder`."""
    server = MCPServer(
        "office",
        title="Office tools",
        version="1.0.0",
        instructions="Everyday tools of a support desk: clock, currencies, shipping costs, notes, replies.",
        log_level="WARNING",
    )
    _add_clock_and_prices(server)
    desk = office.Desk(folder)
    _add_desk(server, desk)
    _add_papers(server, desk)
    return server


def _add_clock_and_prices(server: MCPServer) -> None:
    @server.tool(title="Current time", annotations=_reads())
    def get_current_time(
        timezone: Annotated[str, Field(max_length=64, description="IANA time zone, e.g. `Europe/Berlin`.")],
    ) -> office.CurrentTime:
        """Get the current date and time in a time zone."""
        with _told():
            return office.current_time(timezone)

    @server.tool(title="Convert currency", annotations=_reads())
    def convert_currency(
        amount: Annotated[float, Field(ge=0, le=1e12, description="Amount in the source currency.")],
        source: Annotated[_Currency, Field(validation_alias="from")],
        target: Annotated[_Currency, Field(validation_alias="to")],
    ) -> office.Conversion:
        """Convert an amount between currencies, by a fixed table for demonstrations: not for real payments."""
        with _told():
            return office.convert(amount, source, target)

    @server.tool(title="Shipping quote", annotations=_reads())
    def shipping_quote(
        country: Annotated[str, Field(pattern="^[A-Za-z]{2}$", description="Destination, ISO 3166-1 alpha-2.")],
        weight_kg: Annotated[float, Field(gt=0, le=office.HEAVIEST_KG, description="Weight in kilograms.")],
    ) -> office.ShippingQuote:
        """Get price and delivery time of a parcel from our warehouse in Germany."""
        with _told():
            return office.shipping_quote(country, weight_kg)


def _add_desk(server: MCPServer, desk: office.Desk) -> None:
    @server.tool(title="Create a note", annotations=_writes(open_world=False))
    def create_note(ticket_id: _Ticket, text: Annotated[_Text, Field(description="The note.")]) -> office.Note:
        """Add an internal note to a ticket. The customer does not see it."""
        return desk.create_note(ticket_id, text)

    @server.tool(title="List notes", annotations=_reads())
    def list_notes(ticket_id: _Ticket) -> office.Notes:
        """List the internal notes on a ticket."""
        return desk.list_notes(ticket_id)

    @server.tool(title="Send a reply", annotations=_writes(open_world=True))
    def send_reply(
        ticket_id: _Ticket, text: Annotated[_Text, Field(description="What the customer reads.")]
    ) -> office.Reply:
        """Send a reply to the customer of a ticket. In the demo it stays in the outbox."""
        return desk.send_reply(ticket_id, text)


def _add_papers(server: MCPServer, desk: office.Desk) -> None:
    @server.prompt(title="Answer a customer")
    def answer_customer(
        ticket_id: Annotated[str, Field(description="Number of the ticket.")],
        tone: Annotated[str, Field(description=f"One of: {', '.join(office.TONES)}.")] = "friendly",
    ) -> str:
        """Draft an answer to a ticket, for a person to send."""
        try:
            return office.answer_prompt(ticket_id, tone)
        except office.OfficeError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from error

    @server.resource("office://shipping/rates", name="shipping_rates", title="Shipping rates", mime_type=_MARKDOWN)
    def shipping_rates() -> str:
        """Prices and durations of parcels, by zone."""
        return office.tariff()

    @server.resource(
        "office://tickets/{ticket_id}/notes", name="ticket_notes", title="Notes on a ticket", mime_type=_JSON
    )
    def ticket_notes(ticket_id: int) -> str:
        """The internal notes on a ticket, oldest first."""
        return desk.list_notes(ticket_id).model_dump_json()

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
    async def complete(
        ref: PromptReference | ResourceTemplateReference, argument: CompletionArgument, context: object
    ) -> Completion | None:
        if argument.name != "tone":
            return None
        return Completion(values=[tone for tone in office.TONES if tone.startswith(argument.value)], has_more=False)


class BearerGate:
    """Lets requests pass that carry the token; everybody may ask `/healthz`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without the token (RFC 6750, section 3)."""
        if scope["type"] != "http" or scope["path"] == _HEALTH_PATH or self._knows(scope):
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse({"error": "invalid_token"}, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        await refusal(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"").strip()
        return hmac.compare_digest(given, self._expected)


def build_app(token: str, folder: Path) -> ASGIApp:
    """The ASGI application: `/mcp` and `/healthz`."""
    app = build_server(folder).streamable_http_app(json_response=True, stateless_http=True)
    app.routes.append(Route(_HEALTH_PATH, _healthy))
    return BearerGate(app, token)


async def _healthy(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


def _listening_socket(arguments: argparse.Namespace) -> socket.socket:
    if arguments.fd is not None:
        given = socket.socket(fileno=arguments.fd)
        host = given.getsockname()[0] if given.family in (socket.AF_INET, socket.AF_INET6) else None
        if host not in ("127.0.0.1", "::1"):
            given.close()
            sys.exit(f"The demo's upstream listens on loopback only: file descriptor {arguments.fd} is something else.")
        return given
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", arguments.port))
    return made


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mcpsite.demo.upstream", description="The demo's upstream MCP server."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="a bound socket that was inherited")
    where.add_argument("--port", type=int, help="a port of 127.0.0.1")
    return parser.parse_args()


def main() -> None:
    """Serve until SIGTERM."""
    arguments = _arguments()
    token = env.secret("DEMO_UPSTREAM_TOKEN", "Bearer token that the demo's upstream server requires.")
    if token is None or len(token) < _SHORTEST_TOKEN:
        sys.exit(f"DEMO_UPSTREAM_TOKEN must be set, to at least {_SHORTEST_TOKEN} characters.")
    folder = env.text("DEMO_UPSTREAM_DIR", "Folder in which the demo's upstream server keeps notes and replies.")
    app = build_app(token, Path(folder or tempfile.mkdtemp(prefix="mcpsite-demo-")))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[_listening_socket(arguments)])


if __name__ == "__main__":
    main()
