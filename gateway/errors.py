"""One small tree of errors.  An ApiError knows its HTTP status and becomes OpenAI's error object in one
place; the others never reach a client as they are."""

from gateway.quota import Allowance


class ApiError(Exception):
    """Something the client is told.  `param` names the offending field; `retry_after_s` makes it
    retryable."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


class BadRequest(ApiError):
    status, type = 400, "invalid_request_error"


class Unauthorized(ApiError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ApiError):
    """The key is good, and not for this."""

    status, type, code = 403, "invalid_request_error", "insufficient_permissions"


class NotFound(ApiError):
    status, type = 404, "invalid_request_error"


class MethodNotAllowed(ApiError):
    """`allow` lists the methods that are."""

    status, type = 405, "invalid_request_error"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ApiError):
    status, type = 408, "invalid_request_error"


class PayloadTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "payload_too_large"


class UnsupportedMediaType(ApiError):
    status, type = 415, "invalid_request_error"


class TooManyRequests(ApiError):
    """The pool exists and is contended."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class OverQuota(TooManyRequests):
    """The tenant has used what its key allows.  `type` is OpenAI's: what there is too much of."""

    def __init__(
        self,
        message: str,
        *,
        type: str,
        allowance: Allowance,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, should_retry=should_retry)
        self.type = type
        self.allowance = allowance


class Unavailable(ApiError):
    """No capacity exists now."""

    status, type, code = 503, "service_unavailable_error", "service_unavailable"


class Interrupted(Unavailable):
    """This connection goes no further; the answer may, over another one."""


class DeadlineExceeded(ApiError):
    """The request's own deadline passed before its first token: whoever asked has given up."""

    status, type, code = 429, "rate_limit_error", "deadline_exceeded"


class InternalError(ApiError):
    """Ours, and the client's request is lost."""


class Poisoned(ApiError):
    """The request was running each time its engine died."""

    code = "poisoned"


class Failed(Exception):
    """A command cannot do what it was asked to; the message says why and what to do."""


def in_one_line(error: Exception) -> str:
    """What it says, as libraries that say it in several have it."""
    return " ".join(str(error).split())


class PromptTooLong(Exception):
    """It leaves no room for an answer."""

    def __init__(self, num_tokens: int, *, is_least: bool = False) -> None:
        """`is_least`: nobody counted further."""
        super().__init__(f"at least {num_tokens} tokens" if is_least else f"{num_tokens} tokens")


def context_exceeded(asked: str, field: str, limit_tokens: int) -> BadRequest:
    """`asked` is what the prompt has, in words."""
    message = f"The prompt has {asked}; prompt and answer together may have {limit_tokens} tokens."
    return BadRequest(message, param=field, code="context_length_exceeded")


class QueueFull(Exception):
    """A put would pass a bound: nothing was queued.  `reason` names it: tickets, tokens, bytes, seconds."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the queue is full ({reason})")
        self.reason = reason


class StoreLost(Exception):
    """The store did not answer in time, or answered nonsense.  Whether the verb took effect is unknown."""


class LeaseLost(Exception):
    """Another driver holds the replica now."""


class BackendLost(Exception):
    """The session broke, or the engine is gone."""


class ModelRefused(BackendLost):
    """The engine cannot run its model; the message says why and what to do, in one line."""


class OtherVersion(BackendLost):
    """The engine speaks another version of the contract."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the engine speaks version {version} of the contract")
        self.version = version


class Outranked(Exception):
    """The engine serves a higher epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the engine serves epoch {epoch}")
        self.epoch = epoch
