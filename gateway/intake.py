"""What must be settled before a request is queued: its tokens, its length, its seed, its tickets."""

import random
from collections.abc import Mapping, Sequence

from gateway.call import Live, OpenCall
from gateway.choice import Choice
from gateway.errors import BadRequest, PromptTooLong, Unavailable, context_exceeded
from gateway.fleet import Fleet
from gateway.policy import admission
from gateway.policy.preset import Policy
from gateway.ports import Tokenizer
from gateway.profiler import Profiler
from gateway.recipe import Recipe, without_text
from gateway.request import Request, ServiceClass, Work
from gateway.ticketing import Aim, Ticketing


class Intake:
    def __init__(
        self,
        gateway: str,
        tokenizer: Tokenizer,
        fleet: Fleet,
        profiler: Profiler,
        policy: Policy,
        aims: Mapping[ServiceClass, Aim],
    ) -> None:
        self._tokenizer = tokenizer
        self._fleet = fleet
        self._profiler = profiler
        self._ticketing = Ticketing(gateway, fleet, policy, aims)

    async def call(self, request: Request, call_id: str, arrival_s: float) -> OpenCall:
        """A call with its tickets, known to nobody yet.  Raises BadRequest, Unavailable."""
        limit_tokens = self._fleet.longest_row_tokens
        if not limit_tokens:
            raise Unavailable("No model replica is ready.", retry_after_s=2.0)
        try:
            prompts = await self._encode(request, limit_tokens)
        except PromptTooLong as error:
            raise _prompt_too_long(request, str(error), limit_tokens) from None
        answers = [_answer_tokens(request, len(prompt), limit_tokens) for prompt in prompts]
        self._check(prompts)
        lengths = [len(prompt) for prompt in prompts]
        call = OpenCall(call_id, request, arrival_s, lengths, self._texts(request, prompts))
        seed = request.sampling.seed if request.has_seed else random.getrandbits(62)
        stop_ids = request.stop_token_ids + ([] if request.ignore_eos else self._tokenizer.eos_ids)
        recipe = Recipe(without_text(request), prompts, call.prompt_texts, seed, stop_ids, call.created)
        for number in range(len(prompts) * request.num_choices):
            self._add(request, call, recipe.work(number), answers[number // request.num_choices])
        call.recipe = recipe
        return call

    async def _encode(self, request: Request, limit_tokens: int) -> list[list[int]]:
        if request.is_chat:
            prompts = [await self._tokenizer.encode_chat(request.messages, limit_tokens)]
        else:
            texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
            encoded = iter(await self._tokenizer.encode(texts, limit_tokens) if texts else [])
            prompts = [next(encoded) if isinstance(p, str) else p for p in request.prompts]
        if not all(prompts):
            raise BadRequest("The prompt is empty.", param="messages" if request.is_chat else "prompt")
        return prompts

    def _check(self, prompts: list[list[int]]) -> None:
        """Of prompts that are not too long to look at each token.  Raises BadRequest."""
        vocabulary = self._tokenizer.vocabulary
        for prompt in prompts:
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise BadRequest(f"Token ids must lie between 0 and {vocabulary - 1}.", param="prompt")

    def _texts(self, request: Request, prompts: list[list[int]]) -> list[str]:
        """The prompts as text, for `echo`."""
        if not request.echo:
            return []
        return [
            given if isinstance(given, str) else self._decode(prompt)
            for given, prompt in zip(request.prompts, prompts, strict=True)
        ]

    def _decode(self, tokens: Sequence[int]) -> str:
        """Without a character that is incomplete at its end: the answer begins with it."""
        return "".join(map(self._tokenizer.detokenizer().step, tokens))

    def _add(self, request: Request, call: OpenCall, work: Work, max_tokens: int) -> None:
        number, tokens = len(call.live), len(work.prompt)
        who = f"{request.tenant.name}/{request.user}"
        features = self._profiler.features(work.prompt, max_tokens, request.service_class, who)
        predicted = self._profiler.predict(features, max_tokens, request.ignore_eos)
        ticket = self._ticketing.ticket(f"{call.id}/{number}", request, tokens, max_tokens, predicted)
        choice = Choice(number, work, request.stop, self._tokenizer)
        call.choices.append(choice)
        call.live[ticket.id] = Live(call, choice, ticket, work, None if request.ignore_eos else features)


def _answer_tokens(request: Request, prompt_tokens: int, limit_tokens: int) -> int:
    """How many tokens the answer may have.  Raises BadRequest."""
    answer = admission.answer_tokens(prompt_tokens, request.max_tokens, limit_tokens)
    if isinstance(answer, admission.TooLong):
        raise _too_long(request, prompt_tokens, limit_tokens)
    return answer


def _too_long(request: Request, prompt_tokens: int, limit_tokens: int) -> BadRequest:
    size = f"{prompt_tokens} tokens"
    if prompt_tokens >= limit_tokens:
        return _prompt_too_long(request, size, limit_tokens)
    field = request.max_tokens_field
    return context_exceeded(f"{size} and {field} asks for {request.max_tokens}", field, limit_tokens)


def _prompt_too_long(request: Request, size: str, limit_tokens: int) -> BadRequest:
    return context_exceeded(size, "messages" if request.is_chat else "prompt", limit_tokens)
