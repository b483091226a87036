"""The one mutable record of the engine: a row, from arrival to its single ending.  Pure.

A row that has drawn g tokens in this attempt holds `prompt + g` tokens of room: the last of them is written
by its next decode step.  Tokens that are being drawn count as drawn, but for what they are.  Nothing derived is
stored.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite, isinf

from triton_backend.contract import MAX_LOGPROBS, Alternatives, End, Ended, LiveRow, NewRow, Sampling

PACE = 0.95
"""Part of the target for the time per token that is planned for."""
MAX_CREDIT = 2.0
"""A row's next token is due after so many times the target at most, however early the ones before were: what is
saved is worth more to its reader than to prompts that wait."""


class Status(StrEnum):
    WAITING = "waiting"
    """Accepted; no token of its prompt has been run."""
    PREFILL = "prefill"
    RUNNING = "running"
    """In the decode pool."""
    ENDED = "ended"


TO_PREFILL = {Status.WAITING, Status.PREFILL}

_NEXT = {
    Status.WAITING: {Status.PREFILL, Status.ENDED},
    Status.PREFILL: {Status.RUNNING, Status.ENDED},
    Status.RUNNING: {Status.ENDED},
    Status.ENDED: frozenset[Status](),
}


class IllegalTransition(Exception):
    """A row was moved to a status that its present one does not lead to: a bug of the engine."""


@dataclass(slots=True, eq=False)
class Sequence:
    new: NewRow
    status: Status = Status.WAITING
    prefilled_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    """Drawn in this attempt."""
    logprobs: list[float] = field(default_factory=list)
    """Parallel to `tokens`; empty if not asked for."""
    alternatives: list[Alternatives] = field(default_factory=list)
    """Parallel to `tokens`; empty if not asked for."""
    in_flight: int = 0
    """Tokens after these that a step was started for, and that nobody has read yet."""
    due_s: float = inf
    """When its next token is due, on the mean; inf before the first."""
    ending: Ended | None = None

    @property
    def row(self) -> int:
        return self.new.row

    @property
    def prompt_tokens(self) -> int:
        return len(self.new.prompt)

    @property
    def unfilled_tokens(self) -> int:
        """Tokens of its prompt that are still to be run."""
        return len(self.new.prompt) - self.prefilled_tokens

    @property
    def held_tokens(self) -> int:
        """Tokens whose room it needs to hold before its next step."""
        return len(self.new.prompt) + len(self.tokens) + self.in_flight

    @property
    def index(self) -> int:
        """Index of the next token to draw, counted over all attempts of the ticket."""
        return self.new.index + len(self.tokens) + self.in_flight

    def is_spent(self, context_tokens: int) -> bool:
        """What is in flight ends it, whatever it turns out to be."""
        return len(self.tokens) + self.in_flight >= self.new.max_tokens or self.held_tokens >= context_tokens

    @property
    def wants_logprobs(self) -> bool:
        return self.new.sampling.logprobs is not None

    def prefill(self, tokens: int) -> None:
        """Count `tokens` more tokens of the prompt as run."""
        if self.status is not Status.PREFILL:
            self._become(Status.PREFILL)
        self.prefilled_tokens = min(self.prefilled_tokens + tokens, self.prompt_tokens)

    def fly(self) -> None:
        """A step was started that draws one more token."""
        if self.status is not Status.RUNNING:
            self._become(Status.RUNNING)
        self.in_flight += 1

    def land(self) -> None:
        """That step's token is `draw`n next, or nobody wants it any more."""
        self.in_flight -= 1

    def draw(self, token: int, context_tokens: int) -> None:
        """Take the token of a step, and end if it is the last one."""
        if self.status is not Status.RUNNING:
            self._become(Status.RUNNING)
        self.tokens.append(token)
        if token in self.new.stop_ids:
            self.end(End.STOP)
        elif len(self.tokens) == self.new.max_tokens or self.prompt_tokens + len(self.tokens) >= context_tokens:
            self.end(End.LENGTH)

    def pace(self, now_s: float, tokens: int = 1) -> None:
        """Tokens came, the latest of them now: when the next one is due."""
        tpot_s = PACE * self.new.tpot_s
        due_s = now_s if isinf(self.due_s) else self.due_s
        # A row that is late has no debt: prompts that wait would pay for what is lost anyway.
        self.due_s = min(max(due_s + tokens * tpot_s, now_s), now_s + MAX_CREDIT * tpot_s)

    def due_by(self, now_s: float) -> float:
        """When its next token is due; its second, where the first is still in flight and comes now at the
        earliest."""
        return now_s + PACE * self.new.tpot_s if isinf(self.due_s) else self.due_s

    def end(self, reason: End, detail: str = "") -> None:
        self._become(Status.ENDED)
        self.ending = Ended(self.row, reason, detail)

    def live_row(self) -> LiveRow:
        """This row in a snapshot."""
        new = self.new
        return LiveRow(
            row=new.row,
            ticket=new.ticket,
            attempt=new.attempt,
            origin=new.origin,
            prompt_tokens=self.prompt_tokens,
            index=new.index,
            max_tokens=new.max_tokens - len(self.tokens),
            tokens=list(self.tokens),
            logprobs=list(self.logprobs),
            alternatives=list(self.alternatives),
            ended=self.ending.reason if self.ending else None,
            tpot_s=new.tpot_s,
        )

    def _become(self, status: Status) -> None:
        if status not in _NEXT[self.status]:
            raise IllegalTransition(f"row {self.row}: {self.status} does not lead to {status}")
        self.status = status


def flaw(new: NewRow, context_tokens: int, vocabulary: int) -> str | None:
    """Why no engine of this context and vocabulary can run the row, or None."""
    prompt, stop_ids = new.prompt, new.stop_ids
    if not 1 <= len(prompt) <= context_tokens:
        return f"prompt has {len(prompt)} tokens, must be 1 to {context_tokens}"
    if min(prompt) < 0 or max(prompt) >= vocabulary:
        return f"prompt has a token id outside 0..{vocabulary - 1}"
    if stop_ids and (min(stop_ids) < 0 or max(stop_ids) >= vocabulary):
        return f"stop_ids has a token id outside 0..{vocabulary - 1}"
    if not 0 <= new.index <= len(prompt):
        return f"index is {new.index}, must be 0 to the prompt's {len(prompt)} tokens"
    if new.max_tokens < 1:
        return f"max_tokens is {new.max_tokens}, must be at least 1"
    if not isfinite(new.rank):
        return f"rank is {new.rank}, must be finite"
    if not 0.0 <= new.tpot_s < inf:
        return f"tpot_s is {new.tpot_s}, must be finite and not negative"
    return _sampling_flaw(new.sampling)


def _sampling_flaw(sampling: Sampling) -> str | None:
    if not 0.0 <= sampling.temperature < float("inf"):
        return f"temperature is {sampling.temperature}, must be finite and not negative"
    if not 0.0 < sampling.top_p <= 1.0:
        return f"top_p is {sampling.top_p}, must be above 0 and at most 1"
    if sampling.top_k < 0:
        return f"top_k is {sampling.top_k}, must not be negative"
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        return f"logprobs is {sampling.logprobs}, must be 0 to {MAX_LOGPROBS}"
    return None
