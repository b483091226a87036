"""May a request come in?

A request is let in if its class can still keep every target it has given: with the work that waits, in order of
virtual deadlines, over the rate at which such work is measured to be done (earliest-deadline-first
schedulability).  So a refusal comes at once, before anything was spent, and an admission is a promise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from gateway.request import ServiceClass, Slot, slot_bounds

MIN_PATIENT_SHARE = 0.3
"""Part of its class's rate that a patient request can count on, however many impatient ones come."""
BURST_RESERVE = 0.3
"""Part of a patient request's time that is not planned for, if the impatient take all of the rate; else as much
less.  Patient work that is all due soon leaves no room for a burst of the impatient, who would be refused though
each of them needs little."""


class TooLong(NamedTuple):
    """No replica can hold the prompt and what it asks for."""

    limit_tokens: int
    needed_tokens: int


def answer_tokens(prompt_tokens: int, max_tokens: int | None, limit_tokens: int) -> int | TooLong:
    """How many tokens the answer may have; without `max_tokens`, what `limit_tokens` leaves (at least 1)."""
    left = limit_tokens - prompt_tokens
    if left < (max_tokens or 1):
        return TooLong(limit_tokens, prompt_tokens + (max_tokens or 1))
    return max_tokens or left


class Asked(msgspec.Struct, frozen=True):
    """A call, as admission sees it.  Times in seconds."""

    service_class: ServiceClass
    ttft_s: float
    """Its target for the time to the first token."""
    slack_s: float
    """Until its prompt has to be run."""
    lead_s: float
    """By how much its tenant's virtual clock is ahead: its place is as much behind its target."""
    seconds: float
    """Engine time it is predicted to take, all its tickets together."""
    first_s: float
    """Of which this passes before its first token: its own prefill."""


class Load(NamedTuple):
    """What waits, and how fast it is done."""

    backlog: Mapping[tuple[ServiceClass, int], Slot]
    """By class and deadline slot, on the store's clock."""
    now_s: float
    """The store's clock."""
    rate: float
    """Engine seconds of work done in a second, by all replicas."""
    start_s: float
    """Until some replica has run the prompts it has already taken."""
    shares: Mapping[ServiceClass, float]
    impatient: float = 0.0
    """Engine seconds in a second that are to be expected of the class's requests that may not wait as long."""
    margin: float = 1.0
    """Part of the time until a target that may be planned for."""
    promised: Sequence[tuple[float, float]] = ()
    """Work of refused clients that were told to come back: seconds from now until then, engine seconds."""


class Forecast(NamedTuple):
    """What letting a call in would mean."""

    ttft_s: float
    """Predicted time to its first token."""
    late_s: float
    """By how much targets would be missed, its own or others' that it would break; not above 0: none."""


class AdmissionRule(Protocol):
    def forecast(self, asked: Asked, load: Load) -> Forecast: ...


@dataclass(frozen=True, slots=True)
class Everybody:
    """The queue's bounds are the only ones."""

    def forecast(self, asked: Asked, load: Load) -> Forecast:
        return Forecast(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ByTarget:
    """As long as the class can keep its targets, this one's and those it has admitted."""

    def forecast(self, asked: Asked, load: Load) -> Forecast:
        rate = class_rate(asked.service_class, load)
        if rate <= 0:
            return Forecast(0.0, 0.0)
        before_s, later = _work(asked, load)
        taken = min(1.0, load.impatient / rate)
        left_rate = rate * max(MIN_PATIENT_SHARE, 1.0 - taken)
        ttft_s = load.start_s + before_s / left_rate + asked.first_s
        margin = load.margin * (1.0 - BURST_RESERVE * taken)
        late_s = ttft_s - margin * asked.ttft_s
        for due_s, work_s in later:
            late_s = max(late_s, load.start_s + (work_s + asked.seconds) / rate - due_s)
        return Forecast(ttft_s, late_s)


def class_rate(service_class: ServiceClass, load: Load) -> float:
    """The rate that a class can count on: its share among the classes that have work."""
    busy = {name for name, _ in load.backlog} | {service_class}
    return load.rate * load.shares[service_class] / sum(load.shares[name] for name in busy)


def _work(asked: Asked, load: Load) -> tuple[float, list[tuple[float, float]]]:
    """Engine seconds of the class's work that goes before the request; and for each later deadline, which the
    request must not break, the seconds until then and all work due by then."""
    queued = []
    for (name, slot), waiting in load.backlog.items():
        if name is asked.service_class:
            begins_s, lasts_s = slot_bounds(slot)
            queued.append((begins_s - load.now_s, lasts_s, waiting.seconds))
    promised = [(due_s, 0.0, seconds) for due_s, seconds in load.promised]
    before_s = work_s = 0.0
    later: list[tuple[float, float]] = []
    for begins_s, lasts_s, seconds in sorted(queued + promised):
        work_s += seconds
        if begins_s <= asked.slack_s + asked.lead_s:
            before_s = work_s
        elif lasts_s:
            # Virtual deadlines are as much behind the targets as the clock was ahead, which changes slowly.
            later.append((begins_s + lasts_s - asked.lead_s, work_s))
    return before_s, later
