"""A row of a simulated engine: it counts its tokens instead of holding them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from triton_backend.contract import End, NewRow
from triton_backend.sequence import Sequence, Status


@dataclass(slots=True, eq=False)
class Row(Sequence):
    since: int = 0
    """The engine's count of decode steps when this row joined them."""
    first_s: float = 0.0
    """When it did."""

    def drawn(self, decodes: int) -> int:
        """Tokens drawn in this attempt, when the engine has run so many decode steps."""
        if self.status is Status.RUNNING:
            return 1 + decodes - self.since
        return len(self.tokens)

    def held(self, decodes: int) -> int:
        """Tokens whose room it needs before its next step (Sequence.held_tokens, without the list)."""
        return self.prompt_tokens + self.drawn(decodes)

    def leave(self, reason: End, decodes: int, detail: str = "") -> None:
        """End with what it has drawn."""
        tokens: Any = range(self.drawn(decodes))
        self.tokens = tokens
        self.end(reason, detail)


def row_of(new: NewRow, prompt_tokens: int, answer_tokens: int) -> Row:
    """`answer_tokens` is how many it is really going to draw."""
    prompt: Any = range(prompt_tokens)
    return Row(msgspec.structs.replace(new, prompt=prompt, max_tokens=answer_tokens))
