"""What every HTTP request passes on its way in and out: its ids, the key, the one place where an error
becomes a response, and its log line."""

import asyncio
import math
import re
import uuid
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from gateway.call import outcome_of
from gateway.errors import (
    ApiError,
    InternalError,
    Interrupted,
    MethodNotAllowed,
    NotFound,
    OverQuota,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
)
from gateway.event_stream import ClientGone, EventStream
from gateway.keyring import REFRESH_S, Keyring
from gateway.metrics import Metrics
from gateway.openai import answer
from gateway.ports import Call
from gateway.quota import Allowance
from gateway.request import ANYBODY, Outcome

CLIENT_GONE = 499
"""Status of a request whose client left, in logs and metrics only."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()
_safe_id = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Exchange:
    """What is known of one HTTP request, for its answer and its log line."""

    def __init__(self, request: web.Request) -> None:
        self.arrival_s = asyncio.get_running_loop().time()
        # Never the client's own: a proxy that tries again repeats the request id, while the first still runs.
        self.call_id = uuid.uuid4().hex
        given = request.headers.get("x-request-id", "")
        self.request_id = given if _safe_id.fullmatch(given) else self.call_id
        self.tenant = ANYBODY
        """Whose key came with it."""
        self.outcome = Outcome.FINISHED
        self.refusal: OverQuota | None = None
        self.call: Call | None = None
        self.answer: answer.Answer | None = None
        self.stream: EventStream | None = None
        self.ttft_s: float | None = None

    @property
    def age_s(self) -> float:
        return asyncio.get_running_loop().time() - self.arrival_s

    @property
    def allowance(self) -> Allowance | None:
        """What is left of the tenant's quota, if it was asked."""
        source = self.call or self.refusal
        return None if source is None else source.allowance

    def saw_tokens(self) -> None:
        if self.ttft_s is None:
            self.ttft_s = self.age_s


EXCHANGE = web.RequestKey("exchange", Exchange)


class Middleware:
    def __init__(self, metrics: Metrics, keyring: Keyring) -> None:
        self._metrics = metrics
        self._keyring = keyring

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE] = Exchange(request)
        status = CLIENT_GONE
        try:
            response = await self._answer(request, exchange, handler)
            status = response.status
            return response
        except asyncio.CancelledError:
            exchange.outcome = Outcome.CANCELLED
            raise
        finally:
            self._ended(request, exchange, status)
            # It holds the request, which holds the exchange: a circle that only the collector would find.
            exchange.stream = None

    async def _answer(self, request: web.Request, exchange: Exchange, handler: Handler) -> web.StreamResponse:
        try:
            self._authorize(request, exchange)
            return await handler(request)
        except ClientGone:
            exchange.outcome = Outcome.CANCELLED
            return web.Response(status=CLIENT_GONE)
        except Exception as error:
            failure = _as_api_error(error, exchange)
        exchange.outcome = _outcome(failure, exchange)
        exchange.refusal = failure if isinstance(failure, OverQuota) else None
        if exchange.stream is not None and exchange.stream.begun:
            if isinstance(failure, Interrupted):
                return exchange.stream.cut()
            return await exchange.stream.fail(answer.error_event(failure))
        return _error_response(failure)

    def _authorize(self, request: web.Request, exchange: Exchange) -> None:
        if self._keyring.is_open or not request.path.startswith("/v1/"):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        key = given.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        tenant = self._keyring.tenant(key)
        if tenant is None and key and not self._keyring.is_complete:
            raise Unavailable("The keys in Redis could not be read yet.", retry_after_s=REFRESH_S)
        if tenant is None:
            raise Unauthorized("Send a valid API key as 'Authorization: Bearer KEY'.")
        exchange.tenant = tenant

    def _ended(self, request: web.Request, exchange: Exchange, status: int) -> None:
        resource = request.match_info.route.resource
        self._metrics.responded("other" if resource is None else resource.canonical, status)
        if exchange.outcome is Outcome.CANCELLED:
            self._metrics.client_left()
        write = log.info if request.path.startswith("/v1/") else log.debug
        write(
            "request",
            request_id=exchange.request_id,
            call_id=exchange.call_id,
            tenant=exchange.tenant.name,
            method=request.method,
            path=request.path[:100],
            status=status,
            outcome=exchange.outcome.value,
            prompt_tokens=sum(exchange.call.prompt_tokens) if exchange.call else None,
            completion_tokens=exchange.answer.num_tokens if exchange.answer else None,
            ttft_ms=None if exchange.ttft_s is None else _ms(exchange.ttft_s),
            duration_ms=_ms(exchange.age_s),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _as_api_error(error: Exception, exchange: Exchange) -> ApiError:
    match error:
        case ApiError():
            return error
        case web.HTTPRequestEntityTooLarge():
            return PayloadTooLarge("The body is too large.")
        case web.HTTPNotFound():
            return NotFound("There is nothing at this address.")
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return MethodNotAllowed(f"This address takes {allow}, not {error.method}.", allow=allow)
    log.error("unexpected error", request_id=exchange.request_id, exc_info=error)
    return InternalError(f"Something went wrong on our side (request {exchange.request_id}).")


def _outcome(error: ApiError, exchange: Exchange) -> Outcome:
    if exchange.call is None and not isinstance(error, InternalError):
        return Outcome.REJECTED
    return outcome_of(error)


def _error_response(error: ApiError) -> web.Response:
    response = web.Response(status=error.status, body=answer.error(error), content_type="application/json")
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        response.headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.should_retry is not None:
        response.headers["x-should-retry"] = "true" if error.should_retry else "false"
    return response
