"""The HTTP front: routes, bodies in, answers out.

The handlers run with `handler_cancellation` (`make_runner`): a client that goes away cancels its handler, and
leaving the `async with` block of its call frees all that the call held, unless it is to keep running.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import metrics
from gateway.errors import BadRequest, Forbidden, NotFound, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from gateway.event_stream import EventStream, Reply, Silence
from gateway.keyring import Keyring
from gateway.middleware import EXCHANGE, Exchange, Middleware
from gateway.openai import answer, headers, position
from gateway.openai.position import LAST_EVENT_ID, Position
from gateway.ports import Call, Calls, Later, Tokenizer
from gateway.reader import Kind, Reader
from gateway.request import Delta, Request, Tenant

_encode = msgspec.json.Encoder().encode

IDLE_TIMEOUT_S = 75.0
"""After so long without a whole head of a request a connection is closed; load balancers keep theirs for less."""


def make_app(
    calls: Calls,
    tokenizer: Tokenizer,
    metrics: metrics.Metrics,
    *,
    keyring: Keyring,
    max_body_bytes: int = 4 * 2**20,
    body_timeout_s: float = 30.0,
    keepalive_s: float = 5.0,
    slow_client_s: float = 30.0,
) -> web.Application:
    """To be run by `make_runner`."""
    app = web.Application(middlewares=[Middleware(metrics, keyring).handle], client_max_size=max_body_bytes)
    app.on_response_prepare.append(_add_headers)
    front = Front(calls, tokenizer, metrics, max_body_bytes, body_timeout_s, keepalive_s, slow_client_s)
    app.on_cleanup.append(front.close)
    app.add_routes(
        [
            web.post("/v1/chat/completions", front.chat),
            web.post("/v1/completions", front.completion),
            web.get("/v1/streams/{id}", front.resume, allow_head=False),
            web.get("/v1/models", front.models),
            web.get("/v1/models/{name:.+}", front.model),
            web.get("/health", front.health),
            web.get("/ready", front.ready),
            web.get("/metrics", front.scrape),
        ]
    )
    return app


def make_runner(app: web.Application, idle_timeout_s: float = IDLE_TIMEOUT_S) -> web.AppRunner:
    """Compressed bodies are refused, so nothing is decompressed before that.  Bytes that are not HTTP are
    answered by aiohttp, in plain text, and are not worth a traceback in the log."""
    logger = logging.getLogger("gateway.http")
    logger.addFilter(_is_no_protocol_error)
    return web.AppRunner(
        app,
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        logger=logger,
        keepalive_timeout=idle_timeout_s,
        lingering_time=5.0,
        # Streams have had their time before.
        shutdown_timeout=5.0,
    )


def _is_no_protocol_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    exchange = request.get(EXCHANGE)
    if exchange is not None:
        response.headers["x-request-id"] = exchange.request_id
        if exchange.allowance is not None:
            response.headers.update(headers.rate_limits(exchange.allowance))


class Front:
    """The handlers."""

    def __init__(
        self,
        calls: Calls,
        tokenizer: Tokenizer,
        metrics: metrics.Metrics,
        max_body_bytes: int,
        body_timeout_s: float,
        keepalive_s: float,
        slow_client_s: float,
    ) -> None:
        self._calls = calls
        self._tokenizer = tokenizer
        self._reader = Reader(tokenizer.vocabulary)
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._keepalive_s = keepalive_s
        self._slow_client_s = slow_client_s
        self._created = int(time.time())

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, Kind.CHAT)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, Kind.COMPLETION)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        given, event_id = request.match_info["id"], request.headers.get(LAST_EVENT_ID)
        return await self._resume(request, *position.of_stream(given, event_id))

    async def close(self, app: web.Application) -> None:
        await self._reader.aclose()

    async def models(self, request: web.Request) -> web.Response:
        tenant = request[EXCHANGE].tenant
        names = [name for name in self._calls.models if tenant.may_use(name)]
        return _json(answer.models(names, self._created, self._calls.context_tokens))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._check_model(name, request[EXCHANGE].tenant)
        return _json(answer.model(name, self._created, self._calls.context_tokens))

    async def health(self, request: web.Request) -> web.Response:
        """This process is alive; no word on what it depends on, or a restart would be asked for in vain."""
        return _json({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        reasons = await self._calls.ready()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _generate(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        body = await self._body(request)
        if LAST_EVENT_ID in request.headers:
            # A client that sends its request again means the same one: the body is not looked at.
            return await self._resume(request, *position.of_event(request.headers[LAST_EVENT_ID]))
        asked = await self._reader.read(kind, body, self._calls.context_tokens)
        asked = _allowed(headers.applied(asked, request.headers), exchange.tenant)
        self._check_model(asked.model, exchange.tenant)
        async with self._calls.open(asked, exchange.call_id, exchange.arrival_s) as call:
            exchange.call = call
            if asked.stream:
                return await self._stream(request, exchange, call)
            return await self._whole(request, exchange, call)

    async def _resume(
        self, request: web.Request, call_id: str, sent: Sequence[Position] | None
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.call_id = call_id
        async with self._calls.resume(call_id, exchange.tenant) as call:
            exchange.call = call
            return await self._stream(request, exchange, call, sent)

    def _check_model(self, name: str, tenant: Tenant) -> None:
        """One answer for both, or a key could ask which models there are."""
        if name not in self._calls.models or not tenant.may_use(name):
            message = f"The model '{name}' does not exist or you do not have access to it."
            raise NotFound(message, param="model", code="model_not_found")

    async def _body(self, request: web.Request) -> bytes:
        _check_media_type(request)
        if (request.content_length or 0) > self._max_body_bytes:
            raise PayloadTooLarge(f"The body is larger than {self._max_body_bytes} bytes.")
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.read()
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {self._body_timeout_s:g} s.") from None
        except web.RequestPayloadError as error:
            raise BadRequest(f"The body is not sent as its headers say: {error}") from None

    async def _whole(self, request: web.Request, exchange: Exchange, call: Call) -> web.StreamResponse:
        whole = answer.Whole(call, self._tokenizer.token_text)
        exchange.answer = whole

        def take(deltas: list[Delta]) -> None:
            exchange.saw_tokens()
            whole.take(deltas)

        await call.read(take)
        body = whole.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        reply = Reply(request, headers, self._slow_client_s)
        await reply.write_all(body)
        return reply.response

    async def _stream(
        self, request: web.Request, exchange: Exchange, call: Call, sent: Sequence[Position] | None = None
    ) -> web.StreamResponse:
        has_ids = headers.wants_ids(request.headers, request.method)
        events = answer.Stream(call, self._tokenizer.token_text, sent, has_ids)
        stream = EventStream(request, self._slow_client_s)
        exchange.answer, exchange.stream = events, stream
        # Proxies cut silent streams.
        silence = Silence(self._keepalive_s, call.nudge)

        def take(deltas: list[Delta]) -> Later | None:
            silence.broken()
            if not deltas:
                return stream.send(events.keep_alive)
            exchange.saw_tokens()
            return stream.send(events.take(deltas))

        self._metrics.stream_opened()
        try:
            await call.read(take)
        finally:
            silence.end()
            self._metrics.stream_closed()
        return stream.response


def _allowed(asked: Request, tenant: Tenant) -> Request:
    """The tenant's request, in a class that its key allows.  Raises Forbidden."""
    service_class = asked.service_class
    if not tenant.may_ask_for(service_class):
        if asked.names_class:
            raise Forbidden(f"This key does not allow the service tier '{service_class}'.", param="service_tier")
        service_class = tenant.highest_class
    return msgspec.structs.replace(asked, tenant=tenant, service_class=service_class)


def _check_media_type(request: web.Request) -> None:
    """It has to be named: what names none, any web page may send from its visitor's browser."""
    media = request.content_type
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMediaType(f"The body must be application/json, not {media}: send Content-Type.")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"The body must be UTF-8, not {request.charset}.")
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"Compressed bodies are not supported (Content-Encoding: {coding}).")


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=_encode(value), content_type="application/json")
