"""The live requests of this gateway, each from its arrival to its one ending.

The origin keeps everything a request needs to be run again, so anything else may die: only the origin puts a
ticket back, under the next attempt, with what was generated so far as part of the prompt.  One way serves engine
death, eviction, refusal and a store that forgot.

Fencing: an event of another attempt, or for a token already delivered, is dropped; one for a later token than
the next is a gap, and the ticket is put back.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import NoReturn

import msgspec
import structlog

from gateway.call import Live, OpenCall
from gateway.choice import Choice
from gateway.errors import (
    ApiError,
    BadRequest,
    InternalError,
    Poisoned,
    QueueFull,
    StoreLost,
    TooManyRequests,
    Unavailable,
)
from gateway.fleet import Fleet
from gateway.outbox import Outbox
from gateway.policy import admission, bucket
from gateway.policy.length import LengthHistory
from gateway.ports import Entry, Limits, Store, Tokenizer
from gateway.request import (
    Departed,
    Drawn,
    FinishReason,
    Request,
    ServiceClass,
    Ticket,
    Work,
)
from triton_backend.contract import End

log = structlog.get_logger()

_FINISHED = {End.STOP: FinishReason.STOP, End.LENGTH: FinishReason.LENGTH}
_MAX_DEATHS = 3
_ANY_ATTEMPT = 2**62


class Config(msgspec.Struct, frozen=True):
    """An origin's bounds.  Times in seconds."""

    limits: Limits
    slack_s: dict[ServiceClass, float]
    """Target time to the first token, per class."""
    audit_s: float = 2.0
    life_s: float = 10.0
    """Without a sign of life for this long, an origin's tickets are forgotten."""
    progress_timeout_s: float = 60.0
    """A started ticket that is silent for this long is put back."""


class Origin:
    """Owns this gateway's requests; a Receiver to drivers, `Calls` to the server."""

    def __init__(
        self,
        *,
        gateway: str,
        model: str,
        store: Store,
        tokenizer: Tokenizer,
        fleet: Fleet,
        config: Config,
        wake: Callable[[], None],
        cancel: Callable[[Iterable[tuple[str, int]]], None],
    ) -> None:
        """`wake` and `cancel` reach the drivers: work was queued; free these tickets' rows."""
        self.gateway = gateway
        self.models = [model]
        self._store = store
        self._tokenizer = tokenizer
        self._fleet = fleet
        self._config = config
        self._wake = wake
        self._cancel = cancel
        self._lengths = LengthHistory()
        self._live: dict[str, Live] = {}
        self._outbox = Outbox(store, wake, cancel)

    # For the server

    @property
    def context_tokens(self) -> int | None:
        return self._fleet.longest_row_tokens or None

    @property
    def num_live(self) -> int:
        """Tickets that have not ended."""
        return len(self._live)

    async def ready(self) -> list[str]:
        """Reasons for not being ready; empty when the store and a replica really answer."""
        reasons = [] if self._fleet.replicas else ["no replica answers"]
        try:
            await self._store.ping()
        except StoreLost as error:
            reasons.append(f"the store does not answer: {error}")
        return reasons

    @contextlib.asynccontextmanager
    async def open(self, request: Request, call_id: str, arrival_s: float) -> AsyncIterator[OpenCall]:
        """Admit and queue a request; whatever happens inside, nothing of it is left afterwards.

        `arrival_s` is on the event loop's clock.  Raises BadRequest, TooManyRequests, Unavailable.
        """
        prompts = await self._encode(request)
        call = OpenCall(call_id, request, [len(prompt) for prompt in prompts], self._texts(request, prompts))
        entries = self._admit(request, call, prompts)
        put = asyncio.ensure_future(self._put(call, entries))
        try:
            await asyncio.shield(put)
            yield call
        finally:
            # A put that is under way must have ended before what it queued can be cancelled.
            if put.done():
                self._abandon(call)
            else:
                put.add_done_callback(lambda put: self._abandon(call, put))

    async def _encode(self, request: Request) -> list[list[int]]:
        if request.is_chat:
            prompts = [await self._tokenizer.encode_chat(request.messages)]
        else:
            texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
            encoded = iter(await self._tokenizer.encode(texts) if texts else [])
            prompts = [next(encoded) if isinstance(p, str) else p for p in request.prompts]
        vocabulary = self._tokenizer.vocabulary
        for prompt in prompts:
            if not prompt:
                raise BadRequest("The prompt is empty.", param="messages" if request.is_chat else "prompt")
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise BadRequest(f"Token ids must lie between 0 and {vocabulary - 1}.", param="prompt")
        return prompts

    def _texts(self, request: Request, prompts: list[list[int]]) -> list[str]:
        """The prompts as text, for `echo`."""
        if not request.echo:
            return []
        return [
            given if isinstance(given, str) else self._decode(prompt)
            for given, prompt in zip(request.prompts, prompts, strict=True)
        ]

    def _decode(self, tokens: Sequence[int]) -> str:
        detokenizer = self._tokenizer.detokenizer()
        return "".join(map(detokenizer.step, tokens)) + detokenizer.flush()

    def _admit(self, request: Request, call: OpenCall, prompts: list[list[int]]) -> list[Entry]:
        """The call's tickets, registered as live.  Raises BadRequest, Unavailable."""
        limit_tokens = self._fleet.longest_row_tokens
        if not limit_tokens:
            raise Unavailable("No model replica is ready.", retry_after_s=2.0)
        answers = [_answer_tokens(request, len(prompt), limit_tokens) for prompt in prompts]
        seed = request.sampling.seed if request.has_seed else random.getrandbits(62)
        stop_ids = request.stop_token_ids + ([] if request.ignore_eos else self._tokenizer.eos_ids)
        entries = []
        for prompt, max_tokens in zip(prompts, answers, strict=True):
            for number in range(request.num_choices):
                sampling = msgspec.structs.replace(request.sampling, seed=(seed + number) % 2**63)
                work = Work(prompt, request.min_tokens, stop_ids, sampling)
                entries.append(self._register(request, call, work, max_tokens).entry)
        return entries

    def _register(self, request: Request, call: OpenCall, work: Work, max_tokens: int) -> Live:
        number = len(call.live)
        tokens = len(work.prompt)
        profile = self._lengths.predict(max_tokens, request.ignore_eos)
        rate = self._fleet.prefill_tokens_per_s
        seconds = tokens / rate if rate else 0.0
        ticket = Ticket(
            id=f"{call.id}/{number}",
            origin=self.gateway,
            service_class=request.service_class,
            prompt_tokens=tokens,
            max_tokens=max_tokens,
            profile=profile,
            bin=bucket.bin_of(tokens),
            slack_s=self._config.slack_s[request.service_class],
            cost_s=seconds,
            seconds=seconds,
            size_bytes=0,
        )
        logprobs = request.sampling.logprobs is not None
        detokenizer = self._tokenizer.detokenizer()
        choice = Choice(number, detokenizer, request.stop, request.min_tokens, logprobs)
        live = Live(call, choice, ticket, work)
        call.live[ticket.id] = live
        self._live[ticket.id] = live
        return live

    async def _put(self, call: OpenCall, entries: list[Entry]) -> None:
        try:
            scores = await self._store.put(entries, self._config.limits)
        except QueueFull as full:
            for live in list(call.live.values()):
                self._remove(live)
            raise await self._refusal(full) from full
        except StoreLost as lost:
            raise Unavailable("The queue does not answer.", retry_after_s=2.0) from lost
        for entry, score in zip(entries, scores, strict=True):
            if (live := self._live.get(entry.ticket.id)) is not None:
                live.ticket = msgspec.structs.replace(live.ticket, score=score)
                live.known |= live.ticket.attempt == entry.ticket.attempt
        self._wake()

    async def _refusal(self, full: QueueFull) -> TooManyRequests:
        retry_after_s = 1.0
        with contextlib.suppress(StoreLost):
            queued_tokens = (await self._store.queue()).tokens
            rate = self._fleet.prefill_tokens_per_s
            retry_after_s = admission.retry_after_s(queued_tokens, rate, random.random())
        return TooManyRequests(f"Too many requests are waiting ({full.reason}).", retry_after_s=retry_after_s)

    def _abandon(self, call: OpenCall, put: "asyncio.Future[None] | None" = None) -> None:
        """Free whatever of the call has not ended.  Nobody is left to hear of an error of its `put`."""
        if put is not None and not put.cancelled():
            put.exception()
        for live in list(call.live.values()):
            self._drop(live)

    # For the drivers

    def receive(self, drawn: Sequence[Drawn], departed: Sequence[Departed]) -> Sequence[tuple[str, int]]:
        """Take one engine step's events; those (ticket, attempt) that nobody waits for any more."""
        now_s = asyncio.get_running_loop().time()
        unwanted = [(event.ticket, event.attempt) for event in drawn if not self._on_drawn(event, now_s)]
        for event in departed:
            live = self._live.get(event.ticket)
            if live is not None and live.ticket.attempt == event.attempt:
                self._on_departed(live, event)
        return unwanted

    def _on_drawn(self, event: Drawn, now_s: float) -> bool:
        """Deliver a token; False if nobody waits for this attempt."""
        live = self._live.get(event.ticket)
        if live is None or live.ticket.attempt != event.attempt:
            return False
        next_index = len(live.choice.tokens)
        if event.index > next_index:
            self._put_back(live, "gap")
            return False
        if event.index < next_index:
            return True
        live.heard_s = now_s
        delta = live.choice.push(event.token, event.logprob)
        if delta is not None:
            live.call.push(delta)
            if delta.finish_reason is not None:
                self._lengths.observe(len(live.choice.tokens))
                self._drop(live)
        return True

    def _on_departed(self, live: Live, event: Departed) -> None:
        if event.end in _FINISHED:
            self._lengths.observe(len(live.choice.tokens))
            self._remove(live)
            self._outbox.finish(live)
            live.call.push(live.choice.end(_FINISHED[event.end]))
        elif event.end is End.FAILED:
            log.error("engine.failed", ticket=live.ticket.id, detail=event.detail)
            self._fail(live, InternalError("The engine could not run this request.", code="engine_error"))
        elif event.end is None and live.ticket.deaths + 1 >= _MAX_DEATHS:
            message = f"The engine died {_MAX_DEATHS} times while it ran this request."
            self._fail(live, Poisoned(message, should_retry=False))
        else:
            self._put_back(live, event.end or "engine died", died=event.end is None)

    # Endings and put-backs

    def _remove(self, live: Live) -> None:
        self._live.pop(live.ticket.id, None)
        live.call.live.pop(live.ticket.id, None)

    def _drop(self, live: Live) -> None:
        """Free a ticket wherever it is: row, lease, place in the queue."""
        self._remove(live)
        self._outbox.cancel(live)

    def _fail(self, live: Live, error: ApiError) -> None:
        """One choice's failure ends its call."""
        self._abandon(live.call)
        live.call.fail(error)

    def _put_back(self, live: Live, reason: str, died: bool = False) -> None:
        log.info("ticket.put_back", ticket=live.ticket.id, attempt=live.ticket.attempt, reason=reason)
        self._cancel([(live.ticket.id, live.ticket.attempt)])
        live.next_attempt(died)
        self._outbox.put_back(live)

    # Background

    async def run(self) -> NoReturn:
        """Tell the store what ended and what goes back, and audit, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._audit_for_ever())
        raise AssertionError("never ends")

    async def _audit_for_ever(self) -> NoReturn:
        while True:
            with contextlib.suppress(StoreLost):
                await self.audit()
            await asyncio.sleep(self._config.audit_s)

    async def audit(self) -> None:
        """Put back what the store has forgotten and what has been silent for too long.  Raises StoreLost."""
        now_s = asyncio.get_running_loop().time()
        for live in list(self._live.values()):
            if live.heard_s is not None and now_s - live.heard_s > self._config.progress_timeout_s:
                self._put_back(live, "silent")
        asked = {live.ticket.id: live.ticket.attempt for live in self._live.values() if live.known}
        unknown = await self._store.audit(self.gateway, list(asked.items()), self._config.life_s)
        for ticket in unknown:
            found = self._live.get(ticket)
            if found is not None and found.ticket.attempt == asked[ticket]:
                self._put_back(found, "unknown to the store")
        orphans = await self._store.reap(1000)
        self._cancel((ticket, _ANY_ATTEMPT) for ticket, _ in orphans)


def _answer_tokens(request: Request, prompt_tokens: int, limit_tokens: int) -> int:
    """How many tokens the answer may have.  Raises BadRequest."""
    answer = admission.answer_tokens(prompt_tokens, request.max_tokens, limit_tokens)
    if not isinstance(answer, admission.TooLong):
        return answer
    if prompt_tokens >= limit_tokens:
        field = "messages" if request.is_chat else "prompt"
        asked = f"The prompt has {prompt_tokens} tokens"
    else:
        field = request.max_tokens_field
        asked = f"The prompt has {prompt_tokens} tokens and {field} asks for {request.max_tokens}"
    message = f"{asked}; prompt and answer together may have {limit_tokens}."
    raise BadRequest(message, param=field, code="context_length_exceeded")
