"""Makes a call again from its record and its log: for another gateway, or for another connection to this one."""

import asyncio
from collections.abc import Sequence
from itertools import islice

import msgspec

from gateway import recipe as recipes
from gateway import token_log
from gateway.call import Live, OpenCall
from gateway.choice import Choice
from gateway.ports import Adopted, Tokenizer
from gateway.profiler import Profiler
from gateway.recipe import Recipe
from gateway.recorder import Recorder, Recording
from gateway.request import Delta, FinishReason, Ticket, Work
from gateway.token_log import Closed, Died, Ended, Entry, Token

_AT_ONCE = 200
"""Tokens turned into text before others get their turn."""


class Replay:
    """A call's choices, brought to where its log ends."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.choices = [
            Choice(number, recipe.work(number), recipe.request.stop, tokenizer)
            for number in range(recipe.num_choices)
        ]
        self.deaths = [0] * recipe.num_choices
        self.is_closed = False
        self.size = 0
        """Bytes of the log that were read."""
        self.deltas: list[tuple[int, Delta]] = []
        """Each with the size of the log after it."""
        self._vocabulary = tokenizer.vocabulary

    async def catch_up(self, log: bytes | bytearray) -> None:
        """Read the log to its end, even if it grows meanwhile, or to where it cannot be read."""
        size = -1
        while size < self.size < len(log):
            size = self.size
            for self.size, entry in islice(token_log.read(log, size), _AT_ONCE):
                self._take(entry)
            await asyncio.sleep(0)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Closed):
            self.is_closed = True
            return
        choice = self.choices[entry.choice] if entry.choice < len(self.choices) else None
        delta = None
        match entry:
            case _ if choice is None or choice.is_finished:
                pass
            case Token(token=token, logprob=logprob):
                delta = choice.push(token, logprob) if token < self._vocabulary else None
            case Ended(reason=reason, detail=detail):
                delta = choice.end(reason, detail)
            case Died(deaths=deaths):
                self.deaths[choice.number] = deaths
        if delta is not None:
            self.deltas.append((self.size, delta))


class Adoption:
    def __init__(self, gateway: str, tokenizer: Tokenizer, profiler: Profiler, recorder: Recorder) -> None:
        self._gateway = gateway
        self._tokenizer = tokenizer
        self._profiler = profiler
        self._recorder = recorder

    def replay(self, recipe: Recipe) -> Replay:
        """Of a call that is open here, nothing read yet."""
        return Replay(recipe, self._tokenizer)

    async def call(self, call_id: str, owner: str, adopted: Adopted) -> OpenCall | None:
        """The call as its last origin left it, with what has to be run further; None if it cannot go on."""
        recipe = recipes.decode(adopted.content)
        if recipe is None:
            return None
        begun_s = asyncio.get_running_loop().time() - adopted.age_s
        lengths = [len(prompt) for prompt in recipe.prompts]
        call = OpenCall(call_id, recipe.request, begun_s, lengths, recipe.prompt_texts)
        call.created, call.recipe = recipe.created, recipe
        replay = self.replay(recipe)
        await replay.catch_up(adopted.log)
        if replay.is_closed:
            return None
        recording = Recording(self._recorder, call_id, owner, begun_s, adopted.epoch, adopted.former_epoch)
        recording.content, recording.log = adopted.content, bytearray(adopted.log[: replay.size])
        # What could not be read is written over.
        recording.is_kept, recording.written = replay.size == len(adopted.log), replay.size
        call.record(recording)
        call.replay(replay.deltas)
        call.choices, call.has_tokens = replay.choices, bool(replay.size)
        for choice, deaths, ticket in zip(replay.choices, replay.deaths, recipe.tickets, strict=True):
            if not choice.is_finished:
                ticket = msgspec.structs.replace(
                    ticket,
                    id=f"{call_id}/{choice.number}",
                    origin=self._gateway,
                    # Above those of every origin before.
                    attempt=adopted.epoch - 1,
                    deaths=deaths,
                )
                self._go_on(call, recipe, choice, ticket)
        return call

    def _go_on(self, call: OpenCall, recipe: Recipe, choice: Choice, ticket: Ticket) -> None:
        request, work = recipe.request, recipe.work(choice.number)
        max_tokens = ticket.index + ticket.max_tokens
        if reason := _due(choice.tokens, work, max_tokens):
            call.finish(choice, reason)
            return
        who = f"{request.tenant.name}/{request.user}"
        features = self._profiler.features(work.prompt, max_tokens, request.service_class, who)
        live = Live(call, choice, ticket, work, None if request.ignore_eos else features)
        live.next_attempt(died=False, evicted=False)
        call.live[ticket.id] = live


def _due(tokens: Sequence[int], work: Work, max_tokens: int) -> FinishReason | None:
    """Why the choice is over, if its origin did not get to say so."""
    if tokens and tokens[-1] in work.stop_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if len(tokens) >= max_tokens else None
