"""`/mcp` and `/mcp/<toolset>` as an ASGI application, in front of Django, and what a web process keeps for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings

from access import policy
from access.snapshot import Snapshot
from audit.configured import note_configuration
from audit.ledger import Ledger
from audit.spool import Spool
from audit.system import process_event
from gateway import answers, batches, http, reads, states, wire
from gateway.attempts import Attempts, is_attempt
from gateway.auth import Doorman, bearer_of
from gateway.calls import Pipeline
from gateway.clients import peer_of
from gateway.events import Events
from gateway.feed import Feed
from gateway.hearing import Hearing
from gateway.http import ASGIScope, Receive, Send
from gateway.legacy import SESSION, Legacy
from gateway.limits import Budgets
from gateway.mail import Mail
from gateway.meter import Meter
from gateway.metrics import Metrics, read
from gateway.parking import Parking
from gateway.questions import Questions
from gateway.replies import CLIENT_LEFT, Reply, Streams
from gateway.sessions import Sessions
from gateway.sources import Connectors
from gateway.subscriptions import SUBSCRIBE, Subscriptions
from gateway.tally import Reading
from gateway.task_work import Tasks
from gateway.tasks_extension import TasksExtension
from gateway.terms import Answer, Call, Refused, accompanied
from gateway.visits import Handler, Taker, Visit
from gateway.wire import Message, WireError
from gateway.withdrawals import Withdrawals
from keyring.chance import random_bytes
from keyring.keys import ring
from tools import exact
from tools.connectors.mcp_input import INPUT_REQUIRED

logger = logging.getLogger("gateway")


class Gateway:
    """What one web process needs for calls: policy, ledger, budgets, connections. `start` it, `stop` it."""

    def __init__(self, conninfo: str, ledger_conninfo: str | None = None, program: str = "web") -> None:
        self._program = program
        spool = Spool(settings.LEDGER_SPOOL_DIR, ring()) if settings.LEDGER_SPOOL_DIR else None
        self.ledger = Ledger(ledger_conninfo or conninfo, ring(), spool)
        self.connectors = Connectors(self.ledger.put)
        self._erased_at: datetime | None = None
        self.feed = Feed(conninfo, self._swapped, partial(note_configuration, program))
        self.budgets = Budgets(settings.REDIS_URL, settings.WEB_WORKERS)
        self.mail = Mail(settings.REDIS_URL)
        self.meter = Meter()
        self.pipeline = Pipeline(lambda: self.feed.current, self.ledger, self.budgets, self.connectors.of, self.meter)
        self.tasks = Tasks(conninfo, self.pipeline, self.ledger, self.meter, self.mail, lambda: self.feed.current)
        self.task_door = TasksExtension(self.tasks, self.ledger, self.pipeline.refusals)
        self.attempts = Attempts(self.ledger, self.pipeline.refusals)
        self.metrics = Metrics(conninfo, self.reading, lambda: self.sessions.count())
        self.parking = Parking(self.mail, self.pipeline, self.ledger)
        self.doorman = Doorman(conninfo, self.ledger)
        self.intake = http.Intake()
        self.streams = Streams()
        self.sessions = Sessions(settings.REDIS_URL, self.budgets, self.mail)
        self.events = Events(settings.REDIS_URL, self.mail)
        self.questions = Questions(self.mail)
        self.hearing = Hearing(self.connectors, self.mail, hears=program == "web")
        self.listening = self.hearing.listening
        self.legacy = Legacy(self.sessions, self.events, self.questions, self.mail, self.ledger, self.hearing.listening)
        self.withdrawals = Withdrawals(self.mail)
        self.subscriptions = Subscriptions(self.hearing, self.sessions, self.mail, self._subscribe)
        self.legacy.attend, self.legacy.admit = self.subscriptions.attend, self.subscriptions.admit
        # Of each era: what serves a method.
        self.methods: Mapping[bool, dict[str, Handler]] = {
            True: {
                **self._methods_of_both(),
                "server/discover": self._discover,
                **self.subscriptions.modern,
                **self.task_door.methods,
            },
            False: self._methods_of_both() | self.legacy.methods | self.subscriptions.legacy | {"ping": self._ping},
        }
        # What takes what is not answered, by method; responses are under the empty one.
        self.unanswered: dict[str, Taker] = self.legacy.unanswered | self.withdrawals.unanswered

    def _methods_of_both(self) -> dict[str, Handler]:
        lists, read = dict.fromkeys(answers.LISTS, self._list), dict.fromkeys(reads.METHODS, self._read)
        return {"tools/call": self._call, **lists, **read}

    def _swapped(self, snapshot: Snapshot) -> None:
        self.connectors.replace(snapshot)
        self.listening.swap(snapshot)
        self.hearing.swap(snapshot)
        self.parking.review(snapshot)
        self.questions.review(snapshot)
        if snapshot.erased_at != self._erased_at:
            self._erased_at = snapshot.erased_at
            self.ledger.forget_keys()

    async def start(self) -> None:
        """Begin to connect; returns at once, also when services are away."""
        self.streams.loop = self.intake.loop = asyncio.get_running_loop()
        await self.ledger.start()
        self.ledger.put(process_event("writer_started", self._program, writer_id=str(self.ledger.writer_id)))
        self.feed.start()
        self.doorman.start()
        self.mail.start()
        if self._program == "web":
            await self.tasks.start()
        self.metrics.start()

    def wind_up(self) -> None:
        """End what would go on for ever: the process is going to stop when all requests have their answer."""
        self.listening.close()
        self.legacy.close()

    async def stop(self) -> None:
        """Finish what is under way, then disconnect."""
        self.wind_up()
        await self.hearing.stop()
        await self.tasks.stop()
        await self.parking.stop()
        await self.mail.stop()
        await self.doorman.stop()
        await self.feed.stop()
        self.ledger.put(process_event("writer_stopped", self._program, writer_id=str(self.ledger.writer_id)))
        await self.ledger.stop()
        await self.connectors.close()
        await self.sessions.close()
        await self.events.close()
        await self.budgets.close()
        await self.metrics.stop()

    def ready(self) -> bool:
        """Whether a call would be served now, and the database has all that is on record."""
        return self.feed.current is not None and self.ledger.available and not self.ledger.spooled

    def reading(self) -> Reading:
        """The numbers of this process."""
        hearing, parked = self.hearing, self.parking
        found = read(self.meter, self.ledger, self.budgets, self.feed, self.connectors, hearing, parked)
        found.states["mcpsite_mcp_streams"] = {(): [len(self.streams)]}
        found.states["mcpsite_mcp_questions"] = {(): [len(self.questions)]}
        return found

    def serves(self, path: str) -> bool:
        """Whether the path is the gateway's."""
        return path == "/mcp" or path.startswith("/mcp/")

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; never raises for what a client sent."""
        request_id = random_bytes(16).hex()
        extra: list[tuple[bytes, bytes]] = []
        reply = Reply(self.streams, scope, send, request_id)
        visit: Visit | None = None
        try:
            visit = self._admit(scope, request_id)
            if scope["method"] == "POST":
                status, body = await self._serve(visit, scope, receive, reply)
            else:
                status, body = await self.legacy.serve(scope["method"], visit, reply)
        except asyncio.CancelledError:
            if reply.is_lost:
                reply.close()
                self.meter.status(CLIENT_LEFT)
                return
            if not reply.is_withdrawn:
                raise
            status, body = 202, b""
        except WireError as error:
            if visit is None:
                await self._refuse_unread(scope, receive, error, request_id)
            status, body, extra = error.status, wire.error_body(error), http.error_headers(error)
        except Exception:
            logger.exception("the request %s at /mcp failed", request_id)
            failure = WireError(wire.INTERNAL_ERROR, f"Internal error. Name the request {request_id}.")
            status, body = 500, wire.error_body(failure)
        self.meter.status(await reply.finish(status, body, extra))

    def _admit(self, scope: ASGIScope, request_id: str) -> Visit:
        """Check all that can be checked without the body. Raises WireError."""
        headers = wire.headers_of(scope["headers"])
        toolset = http.toolset_of(scope)
        http.check(scope, headers)
        snapshot = self.feed.current
        if snapshot is None:
            data = {answers.CODE: "policy_unavailable"}
            message = "The policy is not loaded. Try again in a few seconds."
            raise WireError(wire.UNAVAILABLE, message, status=503, data=data, retry_after=2)
        address = http.address_of(scope, headers)
        principal = self.doorman.admit(snapshot, headers, address, request_id)
        if toolset is not None and not answers.sees(snapshot, principal, toolset):
            raise WireError(wire.INVALID_REQUEST, f"There is no toolset {toolset!r} here.", status=404)
        return Visit(snapshot, principal, toolset, headers, address, request_id)

    async def _refuse_unread(self, scope: ASGIScope, receive: Receive, error: WireError, request_id: str) -> None:
        """Put it on record, and find out what the error answers."""
        self.doorman.unread.refuse(scope, error, self.feed.current, request_id)
        if scope["method"] == "POST":
            error.identifier = await self.intake.identifier_of(receive, dict(scope["headers"]))

    async def _serve(self, visit: Visit, scope: ASGIScope, receive: Receive, reply: Reply) -> tuple[int, bytes]:
        try:
            body = await self.intake.body_of(receive, visit.headers)
            if self.feed.current is not visit.snapshot or visit.principal.is_expired():
                # The body took its time, and the policy or the token did not wait for it.
                visit = self._admit(scope, visit.request_id)
            content = wire.read(body, visit.headers)
        except WireError as error:
            if error.data is None:
                await self.attempts.record(visit, None, error)
            raise
        if isinstance(content, list):
            return await batches.answered(content, lambda each: self._one(each, visit, reply, in_batch=True), reply)
        return await self._one(content, visit, reply)

    async def _one(self, content: Any, visit: Visit, reply: Reply, *, in_batch: bool = False) -> tuple[int, bytes]:
        message: Message | None = None
        try:
            message = wire.message_of(content, visit.headers)
            if SESSION in visit.headers:
                message, visit = await self.legacy.bind(message, visit)
            if in_batch:
                batches.check(message)
            return await self._answer(message, visit, reply)
        except WireError as error:
            if message is not None:
                error.identifier = message.identifier if message.method else None
            if is_attempt(content, message, error):
                await self.attempts.record(visit, message, error)
            raise

    async def _answer(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        if message.identifier is None or not message.method:
            if message.method in self.methods[message.modern]:
                raise WireError(wire.INVALID_REQUEST, f"{message.method} is a request: it needs an id.")
            if taker := self.unanswered.get(message.method):
                await taker(message, visit)
            return 202, b""
        handler = self.methods[message.modern].get(message.method)
        if handler is None:
            status = 404 if message.modern else 200
            raise WireError(wire.METHOD_NOT_FOUND, f"There is no method {message.method[:100]!r} here.", status=status)
        if message.modern:
            reply.ends_with_client()
        elif visit.session is not None:
            self.legacy.keep(message, visit, visit.session, reply)
            with self.withdrawals.of(visit.session, message.identifier, reply):
                return await handler(message, visit, reply)
        return await handler(message, visit, reply)

    async def _list(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        return 200, answers.listed(message, visit.snapshot, visit.principal, visit.toolset)

    async def _discover(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        return 200, answers.discovered(message)

    async def _ping(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        return 200, wire.result_body(message.identifier, {})

    async def _call(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        name, arguments = message.params.get("name"), message.params.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise WireError(wire.INVALID_PARAMS, "tools/call needs a name (string) and arguments (object).")
        tool = visit.snapshot.tools.get(name)
        if (
            message.modern
            and tool
            and tool.headers
            and policy.find(visit.snapshot, visit.principal, name, visit.toolset)
        ):
            wire.compare_parameters(visit.headers, tool.headers, arguments)
        call = self._call_of(visit, message, reply, name, arguments)
        return await self._carry_out(message, visit, call, answers.answered)

    async def _read(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        """A prompt, a resource, or values to complete an argument with."""
        read = reads.read_of(message)
        call = self._call_of(visit, message, reply, read.name, read.params)
        call = call._replace(kind=read.kind, method=message.method)
        return await self._carry_out(message, visit, call, answers.used)

    async def _carry_out(
        self, message: Message, visit: Visit, call: Call, form: Callable[[Message, Answer], bytes]
    ) -> tuple[int, bytes]:
        """What came of the call in its form, or what is asked of the client first."""
        call, state = states.continued(message, accompanied(call, message.extra), visit.snapshot)
        try:
            if call.peer is None and state is None:
                answer = await self.pipeline.call(call)
            elif (taken := self.task_door.taken(message, visit, call, state)) is not None:
                done = await taken
                if isinstance(done, bytes):
                    return 200, done
                answer = done
            else:
                answer = await self.parking.carry_out(call, state, visit.snapshot, bearer_of(visit.headers))
        except Refused as refusal:
            return 200, answers.refused(message, refusal)
        if answer.code == INPUT_REQUIRED:
            return 200, answers.asked(message, answer, states.given(message, call, visit.snapshot, answer))
        return 200, form(message, answer)

    async def _subscribe(self, message: Message, visit: Visit, reply: Reply, uri: str) -> Answer:
        """Have the source of a resource subscribed to, which asks nobody anything. Raises Refused."""
        call = self._call_of(visit, message, reply, uri, {"uri": uri})
        notes = {"method": SUBSCRIBE}  # else it would look as if the resource had been read
        return await self.pipeline.call(call._replace(kind="resource", method=SUBSCRIBE, peer=None, notes=notes))

    def _call_of(self, visit: Visit, message: Message, reply: Reply, name: str, arguments: dict[str, Any]) -> Call:
        return Call(
            principal=visit.principal,
            tool=name,
            arguments=arguments,
            raw=exact.written(arguments),
            door="mcp",
            toolset=visit.toolset,
            client=visit.client(message),
            address=visit.address,
            request_id=visit.request_id,
            traceparent=message.traceparent,
            peer=peer_of(message, visit, reply, self.questions),
        )
