"""What this gateway's calls have taken of their tenants' quotas, from before they are queued to their end.

A reservation is made before the put; a call that is refused gives it back, one that ends pays for what it used.
Both are decided here and at once, and the store is told in the background.  If this gateway dies, its streams
end by their time.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import structlog

from gateway.call import OpenCall
from gateway.choice import Choice
from gateway.errors import OverQuota, StoreLost, Unavailable
from gateway.ports import Denied, Tenants
from gateway.quota import UNLIMITED
from gateway.request import Tenant

TTL_S = 30.0
"""How long a stream counts after its gateway's last sign of life."""
PROLONG_S = 10.0
_RETRY_S = 0.2
_STREAM_WAIT_S = 1.0
"""Nobody knows when one of a tenant's streams ends."""

log = structlog.get_logger()


class _Reservation(NamedTuple):
    id: str
    tenant: str
    prompt_tokens: int
    choices: Sequence[Choice]

    @property
    def used_tokens(self) -> int:
        return self.prompt_tokens + sum(len(choice.tokens) for choice in self.choices)


class Reservations:
    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._open: dict[str, _Reservation] = {}
        """By id; each is one OpenCall's (its `reservation`)."""
        self._ended: defaultdict[str, dict[str, int | None]] = defaultdict(dict)
        """Tenant -> id -> tokens used, or None if it never ran: what the store must still be told."""
        self._news = asyncio.Event()

    @property
    def is_settled(self) -> bool:
        """The store knows of every ending."""
        return not self._ended

    async def reserve(self, call: OpenCall, tenant: Tenant) -> None:
        """For a call whose tickets are known and not queued.  One that was adopted goes on with what its last
        origin had reserved, unless that has ended.  Raises OverQuota and, if the store does not answer,
        Unavailable.  Only if it returns must `settle` or `refund` follow."""
        if tenant.quota == UNLIMITED or not call.live:
            return
        prompt_tokens = sum(call.prompt_tokens)
        tokens = _expected_tokens(call, tenant, prompt_tokens)
        id, former = _ids(call)
        try:
            answer = await self._tenants.reserve(tenant.name, id, tokens, tenant.quota, TTL_S, former)
        except BaseException as error:
            # It may have happened all the same.
            self._end(tenant.name, id, None)
            if isinstance(error, StoreLost):
                raise Unavailable("The quota cannot be checked.", retry_after_s=2.0) from error
            raise
        if isinstance(answer, Denied):
            raise _refusal(answer, tenant)
        self._open[id] = _Reservation(id, tenant.name, prompt_tokens, call.choices)
        call.reservation, call.allowance = id, answer.allowance

    def refund(self, call: OpenCall) -> None:
        """The call was not let in."""
        if (reservation := self._close(call)) is not None:
            self._end(reservation.tenant, reservation.id, None)

    def settle(self, call: OpenCall) -> None:
        """The call has ended, however."""
        if (reservation := self._close(call)) is not None:
            self._end(reservation.tenant, reservation.id, reservation.used_tokens)

    def _close(self, call: OpenCall) -> _Reservation | None:
        """Only what is this call's own: it may go on, over another connection or adopted again."""
        id, call.reservation = call.reservation, None
        return None if id is None else self._open.pop(id)

    def _end(self, tenant: str, id: str, tokens: int | None) -> None:
        self._ended[tenant][id] = tokens
        self._news.set()

    async def run(self) -> NoReturn:
        """Tell the store what has ended and what goes on, for ever: one after the other, or what has ended would
        be prolonged."""
        due_s = _now_s()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.tell_endings()
                if _now_s() >= due_s:
                    await self.prolong()
                    due_s = _now_s() + PROLONG_S
            except StoreLost as error:
                log.warning("store.lost", error=str(error))
                await asyncio.sleep(_RETRY_S)
                self._news.set()

    async def tell_endings(self) -> None:
        """Raises StoreLost; what could not be told stays."""
        for tenant in list(self._ended):
            ended = dict(self._ended[tenant])
            await self._tenants.settle(tenant, ended)
            rest = {id: tokens for id, tokens in self._ended.pop(tenant).items() if id not in ended}
            if rest:
                self._ended[tenant] = rest

    async def prolong(self) -> None:
        """Raises StoreLost."""
        ids_of: defaultdict[str, list[str]] = defaultdict(list)
        for id, reservation in self._open.items():
            ids_of[reservation.tenant].append(id)
        for tenant, ids in ids_of.items():
            # Some may have ended while others were told of.
            if live := [id for id in ids if id in self._open]:
                await self._tenants.prolong(tenant, live, TTL_S)


def _ids(call: OpenCall) -> tuple[str, str]:
    """The reservation's, and that of the origin before or "".  Each has its own: what a former one says of an
    ending is not of what goes on."""
    recording = call.recording
    if recording is None or recording.former_epoch is None:
        return call.id, ""
    former = recording.former_epoch
    return f"{call.id}:{recording.epoch}", f"{call.id}:{former}" if former else call.id


def _expected_tokens(call: OpenCall, tenant: Tenant, prompt_tokens: int) -> int:
    """Prompts and, at the most likely to be needed, answers; never more than the whole quota, so that a request
    whose answer might be long has its turn too.  Raises OverQuota if the prompts alone are more."""
    most = tenant.quota.tokens_per_minute
    if most is not None and prompt_tokens > most:
        raise OverQuota(
            f"Request too large: its prompts have {prompt_tokens} tokens, and this key has {most} per minute.",
            type="tokens",
            allowance=call.allowance,
            should_retry=False,
        )
    tokens = prompt_tokens + sum(live.predicted.upper_tokens for live in call.live.values())
    return tokens if most is None else min(tokens, most)


def _refusal(answer: Denied, tenant: Tenant) -> OverQuota:
    quota = tenant.quota
    match answer.bound:
        case "requests":
            what = f"{quota.requests_per_minute} requests per minute"
        case "tokens":
            what = f"{quota.tokens_per_minute} tokens per minute"
        case _:
            what = f"{quota.max_streams} requests at a time"
    return OverQuota(
        f"Rate limit reached for this key: {what}.",
        type="tokens" if answer.bound == "tokens" else "requests",
        allowance=answer.allowance,
        retry_after_s=_STREAM_WAIT_S if answer.wait_s is None else answer.wait_s,
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
