"""What an engine runs between two looks at its inbox, and how large that is."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gateway.simulator.row import Row
from triton_backend.sequence import Sequence


class Style(StrEnum):
    """What shares a step, and when rows come and go."""

    OURS = "ours"
    """One step holds all running rows' next tokens, and prompts as far as those rows can wait (plan.py)."""
    MIXED = "mixed"
    """The same, but prompts up to a token budget (vLLM)."""
    WHOLE = "whole"
    """A batch's prompts in one step, and decode steps until its last row has ended."""


class Padding(StrEnum):
    PADDED = "padded"
    """Every row of a step costs as much as the longest."""
    PROMPTS = "prompts"
    """The prompts of a step do, running rows cost what they are."""
    PACKED = "packed"
    """Every row costs what it is (ours)."""


@dataclass(slots=True)
class Job:
    """What is being run: chunks of prompts, decode steps, or (mixed) one step of both."""

    started_s: float
    ends_s: float
    chunks: list[tuple[Row, int]]
    """Rows and how many tokens of their prompts."""
    padded_tokens: int
    steps: int
    """Decode steps."""


def own(rows: Iterable[Sequence]) -> list[Row]:
    """The planner's rows, which are all ours."""
    return rows  # type: ignore[return-value]


def fill(batches: Iterable[list[Sequence]], max_tokens: int, is_padded: bool) -> list[tuple[Row, int]]:
    """Prompts in order of arrival, the last of them cut to what fits.  Padding counts."""
    chunks: list[tuple[Row, int]] = []
    used = longest = 0
    for batch in batches:
        for row in own(batch):
            room = max_tokens // (len(chunks) + 1) if is_padded else max_tokens - used
            if room <= 0 or (is_padded and longest > room):
                return chunks
            tokens = min(row.prompt_tokens - row.prefilled_tokens, room)
            chunks.append((row, tokens))
            used, longest = used + tokens, max(longest, tokens)
    return chunks


def prefill_size(chunks: list[tuple[Row, int]], is_padded: bool) -> tuple[int, int]:
    """Tokens, and growth of the sum of squared prefilled lengths."""
    longest = max(tokens for _, tokens in chunks)
    sizes = [(row.prefilled_tokens, longest if is_padded else tokens) for row, tokens in chunks]
    return sum(size for _, size in sizes), sum((start + size) ** 2 - start**2 for start, size in sizes)
