"""One API call in flight, and the tickets it fanned out into."""

import asyncio
import time
from collections import deque
from typing import NamedTuple

import msgspec

from gateway import token_log
from gateway.choice import Choice
from gateway.errors import ApiError, DeadlineExceeded, Interrupted, Poisoned
from gateway.policy import bucket
from gateway.policy.admission import Asked
from gateway.policy.features import Features
from gateway.policy.length import left_tokens
from gateway.ports import Entry, Later, Take
from gateway.quota import Allowance
from gateway.recipe import Recipe
from gateway.recorder import Recording
from gateway.request import Delta, FinishReason, Outcome, Profile, Request, Ticket, TokenLogprob, Work

_encode = msgspec.msgpack.Encoder().encode

_AT_ONCE = 64
"""Deltas: of a call that is read again there are thousands, and others wait meanwhile."""


class Live:
    """A ticket's current attempt, and all that further attempts need."""

    __slots__ = (
        *("call", "choice", "ticket", "work", "features", "predicted"),
        *("claimed_s", "first_s", "heard_s", "known", "had_tokens"),
    )

    def __init__(
        self, call: "OpenCall", choice: Choice, ticket: Ticket, work: Work, features: Features | None
    ) -> None:
        self.call = call
        self.choice = choice
        self.ticket = ticket
        self.work = work
        self.features = features
        """None if the answer has nothing to teach: it was made to run to its limit."""
        self.predicted = ticket.profile
        """Of the whole answer; the ticket's is of what this attempt has left."""
        self.claimed_s: float | None = None
        """When a driver took it, whichever attempt was first."""
        self.first_s: float | None = None
        """When its first token came."""
        self.heard_s: float | None = None
        """When this attempt was last heard of; None while it is queued."""
        self.known = False
        """The store has been told of this attempt."""
        self.had_tokens = bool(choice.tokens)
        """It was adopted, and its first token came to another origin."""

    @property
    def is_drawing(self) -> bool:
        """This attempt has drawn a token.  Before that, a long prompt may rightly take its time."""
        return len(self.choice.tokens) > self.ticket.index

    @property
    def entry(self) -> Entry:
        """For the queue: the prompt, and what earlier attempts delivered, to be prefilled together."""
        prompt = self.work.prompt + self.choice.tokens
        payload = _encode(msgspec.structs.replace(self.work, prompt=prompt))
        return Entry(msgspec.structs.replace(self.ticket, size_bytes=len(payload)), payload)

    def next_attempt(self, died: bool, evicted: bool) -> None:
        """Another attempt, from the token after the last one delivered."""
        ticket = self.ticket
        index = len(self.choice.tokens)
        drawn = index - ticket.index
        left = ticket.max_tokens - drawn
        upper = left_tokens(ticket.profile, drawn, left)
        expected = min(max(1, ticket.profile.expected_tokens - drawn), upper)
        prompt_tokens = len(self.work.prompt) + index
        self.ticket = msgspec.structs.replace(
            ticket,
            attempt=ticket.attempt + 1,
            prompt_tokens=prompt_tokens,
            index=index,
            max_tokens=left,
            profile=Profile(expected, upper),
            bin=bucket.bin_of(prompt_tokens),
            deaths=ticket.deaths + died,
            evictions=ticket.evictions + evicted,
        )
        self.heard_s = None
        self.known = False


class Promise(NamedTuple):
    """An admission."""

    asked: Asked
    ttft_s: float
    """Predicted time to the first token."""


class OpenCall:
    """What the server reads an answer from (ports.Call)."""

    def __init__(
        self, id: str, request: Request, arrival_s: float, prompt_tokens: list[int], prompt_texts: list[str]
    ) -> None:
        self.id = id
        self.request = request
        self.created = int(time.time())
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.prompt_texts = prompt_texts
        self.service_class = request.service_class
        self.choices: list[Choice] = []
        self.live: dict[str, Live] = {}
        """Its tickets that have not ended."""
        self.promise: Promise | None = None
        """What was relied on when it was let in."""
        self.allowance = Allowance()
        self.error: ApiError | None = None
        self.has_tokens = False
        self.recipe: Recipe | None = None
        self.recording: Recording | None = None
        """None if the call cannot be adopted."""
        self.is_read = True
        """A client waits for what is pushed."""
        self.reservation: str | None = None
        """By which id it has taken of its tenant's quota; None if it has not, or another ends it."""
        self.expiry: asyncio.TimerHandle | None = None
        self._held: deque[tuple[int, Delta]] = deque()
        """What the log has to tell first, up to the given size."""
        self._deltas: list[Delta] = []
        self._take: Take | None = None
        self._turn: asyncio.Future[Later | None] | None = None
        """Until it is the reader's: whose `take` gets what comes meanwhile."""

    @property
    def tickets(self) -> list[Ticket]:
        """Of what has not ended."""
        return [live.ticket for live in self.live.values()]

    @property
    def entries(self) -> list[Entry]:
        """The same, for the queue."""
        return [live.entry for live in self.live.values()]

    async def read(self, take: Take) -> None:
        try:
            while (later := await self._next_turn(take)) is not None:
                await later()
        finally:
            # It may hold the call: a circle that only the collector would find.
            self._take = None
        if self.error is not None:
            raise self.error

    async def _next_turn(self, take: Take) -> Later | None:
        self._take, self._turn = take, asyncio.get_running_loop().create_future()
        self._wake()
        return await self._turn

    def nudge(self) -> None:
        self._give([])

    def _wake(self) -> None:
        """There is something new, or nothing will be."""
        if len(self._deltas) > _AT_ONCE:
            self._give_some()
        elif self._deltas and self._give(self._deltas):
            self._deltas = []
        is_over = self.error is not None or not (self.live or self._held)
        if is_over and self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def _give_some(self) -> None:
        """The rest is for the reader's next turn."""
        if self._give(self._deltas[:_AT_ONCE]):
            del self._deltas[:_AT_ONCE]
            if self._turn is not None and not self._turn.done():
                self._turn.set_result(_others)

    def _give(self, deltas: list[Delta]) -> bool:
        """False: the reader is busy."""
        if self._take is None or self._turn is None or self._turn.done():
            return False
        try:
            later = self._take(deltas)
        except Exception as error:
            # The reader's alone: whoever brought these has others to serve.
            self._turn.set_exception(error)
        else:
            if later is not None:
                self._turn.set_result(later)
        return True

    def ended(self, live: Live) -> None:
        """Nothing comes of this ticket any more."""
        self.live.pop(live.ticket.id, None)
        if not self.live:
            self._wake()

    def succeed(self, before: "OpenCall") -> None:
        """Take over the call from another connection, which is interrupted."""
        self.created, self.recipe = before.created, before.recipe
        self.promise, self.has_tokens = before.promise, before.has_tokens
        self.allowance, self.choices = before.allowance, before.choices
        self.reservation, before.reservation = before.reservation, None
        self.live, before.live = before.live, {}
        for live in self.live.values():
            live.call = self
        if before.recording is not None:
            self.record(before.recording)
            before.recording = None
        before.fail(Interrupted("The stream goes on over another connection.", retry_after_s=1.0))

    def record(self, recording: Recording) -> None:
        self.recording = recording
        recording.on_written = self._release

    def drew(self, choice: Choice, token: int, logprob: TokenLogprob | None) -> FinishReason | None:
        """A token came; the reason, if the choice is complete with it."""
        if self.recording is not None:
            self.recording.append(token_log.drawn(choice.number, token, logprob))
        delta = choice.push(token, logprob)
        if delta is None:
            return None
        self._push(delta)
        return delta.finish_reason

    def finish(self, choice: Choice, reason: FinishReason, detail: str = "") -> FinishReason:
        """The row ended; why the choice did."""
        if self.recording is not None:
            self.recording.append(token_log.ended(choice.number, reason, detail))
        delta = choice.end(reason, detail)
        self._push(delta)
        return delta.finish_reason or reason

    def replay(self, deltas: list[tuple[int, Delta]]) -> None:
        """What was pushed before, each with the size of the log after it, for a reader who begins."""
        for size, delta in deltas:
            self._push(delta, size)

    def _push(self, delta: Delta, size: int | None = None) -> None:
        recording = self.recording
        if not self.is_read:
            return
        if recording is not None:
            size = len(recording.log) if size is None else size
            if self._held or (recording.holds and recording.written < size):
                self._held.append((size, delta))
                return
        self._deltas.append(delta)
        self._wake()

    def _release(self, written: int) -> None:
        while self._held and self._held[0][0] <= written:
            self._deltas.append(self._held.popleft()[1])
        self._wake()

    def fail(self, error: ApiError) -> None:
        """End the call; what was pushed before is still read, unless it may be somebody else's to tell."""
        self.error = error
        if not isinstance(error, Interrupted):
            self._deltas += [delta for _, delta in self._held]
        self._held.clear()
        self._wake()


async def _others() -> None:
    """Let others have their turn."""
    await asyncio.sleep(0)


def outcome_of(error: ApiError) -> Outcome:
    """The ending of a call that failed after it was queued."""
    return _OUTCOMES.get(type(error), Outcome.FAILED)


_OUTCOMES: dict[type[ApiError], Outcome] = {
    Poisoned: Outcome.POISONED,
    DeadlineExceeded: Outcome.EXPIRED,
    Interrupted: Outcome.CANCELLED,
}
