"""A row of a simulated engine: it counts its tokens instead of holding them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from triton_backend.contract import End, NewRow
from triton_backend.sequence import Sequence, Status


@dataclass(slots=True, eq=False)
class Row(Sequence):
    prompt_tokens: int = 0
    base: int = 0
    """Tokens held while it runs, less the engine's count of decode steps."""
    paced: int = 0
    """Of its tokens so many have moved the time when the next one is due."""

    def join(self, decodes: int, drawn: int = 1) -> None:
        """It takes part in the decode steps from now on."""
        self.base = self.prompt_tokens + drawn - decodes

    def drawn(self, decodes: int) -> int:
        """Tokens drawn in this attempt, when the engine has run so many decode steps."""
        if self.status is Status.RUNNING:
            return self.base + decodes - self.prompt_tokens
        return len(self.tokens)

    @property
    def last_at(self) -> int:
        """The count of decode steps at which it draws its last token."""
        return self.prompt_tokens + self.new.max_tokens - self.base

    def leave(self, reason: End, decodes: int, detail: str = "") -> None:
        """End with what it has drawn."""
        tokens: Any = range(self.drawn(decodes))
        self.tokens = tokens
        self.end(reason, detail)


def row_of(new: NewRow, prompt_tokens: int, answer_tokens: int) -> Row:
    """`answer_tokens` is how many it is really going to draw."""
    prompt: Any = range(prompt_tokens)
    return Row(msgspec.structs.replace(new, prompt=prompt, max_tokens=answer_tokens), prompt_tokens=prompt_tokens)
