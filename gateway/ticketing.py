"""From a request's lengths to its ticket: how long it takes, and its place in the queue."""

from collections.abc import Mapping

import msgspec

from gateway.fleet import Fleet
from gateway.policy import bucket, priority
from gateway.policy.preset import Policy
from gateway.request import Profile, Request, ServiceClass, Ticket


class Aim(msgspec.Struct, frozen=True):
    """A class's targets.  Seconds."""

    ttft_s: float
    tpot_s: float


class Ticketing:
    def __init__(self, gateway: str, fleet: Fleet, policy: Policy, aims: Mapping[ServiceClass, Aim]) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._policy = policy
        self._aims = aims

    def ticket(self, id: str, request: Request, prompt_tokens: int, max_tokens: int, predicted: Profile) -> Ticket:
        """The first attempt at one choice of one prompt."""
        profile = self._policy.length.profile(predicted, max_tokens)
        prefill_s, answer_s = self._fleet.seconds(prompt_tokens, profile.expected_tokens)
        seconds = prefill_s + answer_s
        aim, asked = self._aims[request.service_class], request.targets
        ttft_s = priority.ttft_s(asked.ttft_s, aim.ttft_s, prefill_s)
        slack_s = priority.slack_s(ttft_s, asked.deadline_s, answer_s)
        rate = request.tenant.weight * (self._fleet.work_rate or 1.0)
        slack_s, cost_s = self._policy.priority.place(slack_s, seconds / rate)
        return Ticket(
            id=id,
            origin=self._gateway,
            tenant=request.tenant.name,
            service_class=request.service_class,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            profile=profile,
            bin=bucket.bin_of(prompt_tokens),
            ttft_s=ttft_s,
            tpot_s=priority.tpot_s(asked.tpot_s, aim.tpot_s),
            slack_s=slack_s,
            cost_s=cost_s,
            seconds=seconds,
            prefill_s=prefill_s,
            size_bytes=0,
        )
