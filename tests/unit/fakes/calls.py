"""The origin as the HTTP front sees it: replays a script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from gateway.errors import ApiError, NotFound
from gateway.ports import Take
from gateway.quota import Allowance
from gateway.request import Delta, FinishReason, Request, Tenant, TokenLogprob

Step = Sequence[Delta] | ApiError | Exception | asyncio.Event
"""Deltas of one wake-up, an error, or something to wait for."""

MODEL = "the-model"


def delta(
    text: str,
    so_far: int = 1,
    *,
    choice: int = 0,
    end: FinishReason | None = None,
    logprobs: Sequence[TokenLogprob] | None = None,
    chars: int | None = None,
) -> Delta:
    """One token's, the `so_far`-th of its choice."""
    return Delta(choice, text, [so_far], logprobs, end, so_far, len(text) if chars is None else chars)


def hello(choices: int = 1) -> list[Step]:
    """Two wake-ups: "Hello" and " world", for every choice."""
    return [
        [delta("Hello", 1, choice=i, chars=5) for i in range(choices)],
        [delta(" world", 2, choice=i, chars=11, end=FinishReason.STOP) for i in range(choices)],
    ]


class ScriptedCall:
    created = 1_700_000_000

    def __init__(self, id: str, steps: Sequence[Step], request: Request) -> None:
        self.id = id
        self.request = request
        self.prompt_tokens = [3] * (len(request.prompts) or 1)
        self.prompt_texts = [p for p in request.prompts if isinstance(p, str)] if request.echo else []
        self.service_class = request.service_class
        self.allowance = Allowance()
        self._steps = list(steps)
        self._nudge = asyncio.Event()

    def nudge(self) -> None:
        self._nudge.set()

    async def read(self, take: Take) -> None:
        while self._steps:
            later = None
            match self._steps[0]:
                case asyncio.Event() as event:
                    if await self._happens(event):
                        self._steps.pop(0)
                    else:
                        later = take([])
                case Exception() as error:
                    raise error
                case deltas:
                    self._steps.pop(0)
                    later = take(list(deltas))
            if later is not None:
                await later()

    async def _happens(self, event: asyncio.Event) -> bool:
        """Unless it is nudged before."""
        waits = [asyncio.create_task(one.wait()) for one in (event, self._nudge)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._nudge.clear()
        return event.is_set()


class ScriptedCalls:
    """Each call gets the script's steps; without a script it says hello."""

    context_tokens = 4096

    def __init__(self, script: Sequence[Step] | None = None) -> None:
        self.models = [MODEL]
        self.requests: list[Request] = []
        self.opened_ids: list[str] = []
        self.resumed_by: list[str] = []
        self.refusals: list[Exception] = []
        """Raised by the next calls instead of opening."""
        self.reasons: list[str] = []
        """Why not ready."""
        self.live = 0
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self._script = script

    async def ready(self) -> list[str]:
        return self.reasons

    @contextlib.asynccontextmanager
    async def open(self, request: Request, call_id: str, arrival_s: float) -> AsyncIterator[ScriptedCall]:
        self.requests.append(request)
        self.opened_ids.append(call_id)
        if self.refusals:
            raise self.refusals.pop(0)
        choices = max(1, len(request.prompts)) * request.num_choices
        self.live += 1
        self.opened.set()
        try:
            yield ScriptedCall(call_id, hello(choices) if self._script is None else self._script, request)
        finally:
            self.live -= 1
            self.closed.set()

    @contextlib.asynccontextmanager
    async def resume(self, call_id: str, tenant: Tenant) -> AsyncIterator[ScriptedCall]:
        """Any call that was opened, from its beginning."""
        self.resumed_by.append(tenant.name)
        if call_id not in self.opened_ids:
            raise NotFound("no such stream")
        request = self.requests[self.opened_ids.index(call_id)]
        async with self.open(request, call_id, 0.0) as call:
            yield call
