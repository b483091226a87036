"""The words of the gateway.  A new fact is a new type: Request -> Ticket -> Delta -> Outcome.

Times are seconds, lengths tokens, sizes bytes.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from math import floor, inf

import msgspec

from gateway.quota import UNLIMITED, Quota
from triton_backend.contract import Alternatives, End, Sampling


class ServiceClass(StrEnum):
    """The classes between which capacity is shared (OpenAI's `service_tier`)."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


class Tenant(msgspec.Struct, frozen=True):
    """Who asks, and what its API key allows."""

    name: str
    """Of the key: the same in every gateway, no secret, and no other key's."""
    models: frozenset[str] | None = None
    """None: all."""
    highest_class: ServiceClass = ServiceClass.PRIORITY
    quota: Quota = UNLIMITED
    weight: float = 1.0
    """Its part of a class's capacity while several tenants wait, against the others' weights."""

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models

    def may_ask_for(self, service_class: ServiceClass) -> bool:
        order = list(ServiceClass)
        return order.index(service_class) >= order.index(self.highest_class)


ANYBODY = Tenant("")
"""Whoever comes where no key is asked for."""


class Targets(msgspec.Struct, frozen=True):
    """What a client asks for in time.  None: its class's targets, and no deadline."""

    ttft_s: float | None = None
    """To the first token."""
    tpot_s: float | None = None
    """To each further token."""
    deadline_s: float | None = None
    """To the last token, after which nobody waits for the answer."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, parsed and checked, before anything is known about its length in tokens."""

    model: str
    prompts: list[str | list[int]] = []
    """Texts or token ids; empty for a chat."""
    messages: list[dict[str, str]] = []
    """A chat's turns with their text content, for the chat template."""
    num_choices: int = 1
    """Choices per prompt."""
    max_tokens: int | None = None
    """None: whatever the context leaves."""
    max_tokens_field: str = "max_tokens"
    """The name the client used, for error messages."""
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    sampling: Sampling = Sampling()
    """`seed` is meaningful only if `has_seed`; choice i draws with seed + i."""
    has_seed: bool = False
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    service_class: ServiceClass = ServiceClass.DEFAULT
    names_class: bool = False
    """The client chose the class itself."""
    user: str = ""
    """What the client says of its own users; tells nothing of who asks."""
    tenant: Tenant = ANYBODY
    targets: Targets = Targets()
    keeps_running: bool = False
    """It goes on when its client is gone."""
    num_retries: int | None = None
    """How often the client was refused before and came back; None if it does not say."""

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


class Profile(msgspec.Struct, frozen=True):
    """Predicted output length of a ticket (UELLM's resource profile, first half)."""

    expected_tokens: int
    upper_tokens: int


NO_TARGET_S = 3600.0
"""Stands for a target that anything meets."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of one prompt, as the queue sees it: everything a policy needs, no prompt.

    `(id, attempt)` fences: whatever speaks of another attempt is stale.
    """

    id: str
    """`call/i`."""
    attempt: int = 0
    origin: str
    """The gateway that owns the request."""
    tenant: str = ""
    service_class: ServiceClass = ServiceClass.DEFAULT
    prompt_tokens: int
    """To prefill: the prompt and what earlier attempts generated."""
    index: int = 0
    """Index of the next token to draw."""
    max_tokens: int
    """How many may still be drawn."""
    profile: Profile
    bin: int
    """Length bin of `prompt_tokens`."""
    ttft_s: float = NO_TARGET_S
    """Target for the time to the first token."""
    tpot_s: float = NO_TARGET_S
    """Target for the time per further token."""
    slack_s: float
    """Virtual deadline minus virtual start."""
    cost_s: float
    """How far the ticket advances its tenant's fairness tag."""
    seconds: float
    """Predicted engine time, for the backlog sums."""
    prefill_s: float = 0.0
    """Of which its prompt takes."""
    size_bytes: int
    """Of the payload that travels beside it."""
    deaths: int = 0
    """Engine deaths it was present at."""
    evictions: int = 0
    """How often it had to make room."""
    score: float = 0.0
    """Virtual deadline on the store's clock; the store fixes it at the first put, and it never moves again."""


class Work(msgspec.Struct, frozen=True):
    """A ticket's payload: what the engine needs and no policy looks at."""

    prompt: list[int]
    min_tokens: int
    stop_ids: list[int]
    sampling: Sampling


class Head(msgspec.Struct, frozen=True):
    """The best ticket of one non-empty (bin, class) set."""

    bin: int
    service_class: ServiceClass
    ticket: str
    score: float
    count: int
    """Tickets in the set."""


SLOT_WIDTHS_S = ((16.0, 0.5), (128.0, 4.0), (inf, 32.0))
"""Slack up to which a ticket is counted in slots of a width: deadlines are told apart by a fraction of the slack,
and slots stay few however far ahead they lie."""
_SLOT_SLACKS_S = [most_s for most_s, _ in SLOT_WIDTHS_S]


def slot_of(score: float, slack_s: float) -> int:
    """The deadline slot in which a ticket is counted: four times its number among those of its width, plus which
    width that is."""
    level = bisect_left(_SLOT_SLACKS_S, slack_s)
    return 4 * floor(score / SLOT_WIDTHS_S[level][1]) + level


def slot_bounds(slot: int) -> tuple[float, float]:
    """The first deadline of a slot, and its width.  Raises IndexError for what is no slot."""
    width_s = SLOT_WIDTHS_S[slot % 4][1]
    return slot // 4 * width_s, width_s


class Slot(msgspec.Struct, frozen=True):
    """What waits in one (class, deadline slot)."""

    tokens: int
    """Of prompts."""
    seconds: float
    """Predicted engine time."""


class Backlog(msgspec.Struct, frozen=True, dict=True):
    """All that waits, by class and virtual deadline."""

    now_s: float
    """The store's clock."""
    start_s: float
    """Virtual start of the next ticket of the tenant that was asked for."""
    slots: Mapping[tuple[ServiceClass, int], Slot]
    """See `slot_of`."""

    @cached_property
    def seconds(self) -> float:
        """Predicted engine time of all of it."""
        return sum(slot.seconds for slot in self.slots.values())


class Queue(msgspec.Struct, frozen=True):
    """All that a driver's choice needs, in one read."""

    now_s: float
    """The store's clock."""
    heads: Sequence[Head]
    served: Mapping[ServiceClass, float]
    """Prefill tokens claimed per class, over the class's share: the smallest is next in turn."""
    bounds: tuple[int, ...]
    """Bucket table: ascending first bins of the buckets; the first is 0."""
    bounds_version: int
    tickets: int
    tokens: int
    bytes: int
    shown: Sequence[Ticket] = ()
    """All that waits, best score first, if that is little."""

    @property
    def waiting(self) -> set[ServiceClass]:
        """The classes with waiting work."""
        return {head.service_class for head in self.heads}

    def holding(self, tickets: Sequence[Ticket], now_s: float) -> "Queue":
        """As it would be at that time with these few tickets alone, just come."""
        shown = sorted(
            (msgspec.structs.replace(ticket, score=now_s + ticket.slack_s) for ticket in tickets),
            key=lambda ticket: ticket.score,
        )
        sets: dict[tuple[int, ServiceClass], list[Ticket]] = {}
        for ticket in shown:
            sets.setdefault((ticket.bin, ticket.service_class), []).append(ticket)
        return msgspec.structs.replace(
            self,
            now_s=now_s,
            heads=[Head(*key, best[0].id, best[0].score, len(best)) for key, best in sets.items()],
            tickets=len(shown),
            tokens=sum(ticket.prompt_tokens for ticket in shown),
            bytes=sum(ticket.size_bytes for ticket in shown),
            shown=shown,
        )


class TokenLogprob(msgspec.Struct, frozen=True):
    token: int
    logprob: float
    alternatives: Alternatives


class FinishReason(StrEnum):
    """What the client is told."""

    STOP = "stop"
    LENGTH = "length"


class Delta(msgspec.Struct, frozen=True):
    """What is new in one choice.  A choice's last delta has a `finish_reason`.

    `text` is safe to send: whole characters, and no part of a stop string.  Tokens and text need not end at
    the same place: text may be held back.
    """

    choice: int
    """prompt number * num_choices + choice number."""
    text: str
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprob] | None
    finish_reason: FinishReason | None
    num_tokens: int
    """Generated so far in this choice, these included."""
    num_chars: int
    """Characters of text sent so far in this choice, these included."""
    detail: str = ""
    """What ended the choice, where OpenAI has no word for it."""


class Outcome(StrEnum):
    """The one ending of every request: metric label and log word.  Rejected = never queued."""

    FINISHED = "finished"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    """The client went away, or went on over another connection."""
    FAILED = "failed"
    POISONED = "poisoned"
    """Present at too many engine deaths."""
    EXPIRED = "expired"
    """Its own deadline passed before its first token."""


class Drawn(msgspec.Struct, frozen=True):
    """A token that an engine drew for a ticket's attempt; `index` counts from the ticket's first token."""

    ticket: str
    attempt: int
    index: int
    token: int
    logprob: TokenLogprob | None


class Departed(msgspec.Struct, frozen=True):
    """A ticket's attempt is in the engine no more.  `end` None: lost with the engine."""

    ticket: str
    attempt: int
    end: End | None
    detail: str = ""
    num_tokens: int = 0
    """Drawn for the ticket until then, by earlier attempts too."""
