"""All that a call is run from, so that another gateway can run it again."""

import msgspec

from gateway.request import Request, Ticket, Work


class Recipe(msgspec.Struct, frozen=True):
    """A field may be added with a default, never renamed or retyped: gateways of two versions run side by side."""

    request: Request
    """Without its text: `prompts` has it."""
    prompts: list[list[int]]
    prompt_texts: list[str]
    """By prompt; empty unless the request asked for `echo`."""
    seed: int
    stop_ids: list[int]
    created: int
    """When the answer was begun, in seconds since 1970."""
    tickets: list[Ticket] = []
    """By choice, with their scores."""

    @property
    def num_choices(self) -> int:
        """Of all prompts."""
        return len(self.prompts) * self.request.num_choices

    def work(self, number: int) -> Work:
        """What choice `number` is drawn from."""
        request = self.request
        prompt, choice = divmod(number, request.num_choices)
        sampling = msgspec.structs.replace(request.sampling, seed=(self.seed + choice) % 2**63)
        return Work(self.prompts[prompt], request.min_tokens, self.stop_ids, sampling)


def without_text(request: Request) -> Request:
    """The rest of a request whose prompts are tokens now."""
    turns = [{"role": "", "content": ""}] if request.is_chat else []
    return msgspec.structs.replace(request, prompts=[], messages=turns)


def encode(recipe: Recipe) -> bytes:
    return _encoder.encode(recipe)


def decode(raw: bytes) -> Recipe | None:
    """None if it is none, or of a version that says too little."""
    try:
        recipe = _decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return recipe if recipe.request.num_choices > 0 and len(recipe.tickets) == recipe.num_choices else None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Recipe)
