"""What transformers' `generate()` says, and what counts as equal to it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gateway.settings import DEMO_MODEL

TIE = 1e-4
"""Two candidates whose logits differ by less may come out in either order."""


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


def greedy(prompt: Sequence[int], max_tokens: int, min_tokens: int = 0) -> list[int]:
    """The answer to a prompt alone, its end-of-text included."""
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        whole = model().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            min_new_tokens=min_tokens,
            do_sample=False,
        )
    return [int(token) for token in whole[0, len(prompt) :]]


def is_tie(prompt: Sequence[int], expected: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether two different answers part at a tie."""
    at = next(at for at in range(len(expected)) if expected[at : at + 1] != answer[at : at + 1])
    if at >= len(answer):
        return False
    with torch.inference_mode():
        logits = model()(torch.tensor([[*prompt, *expected[:at]]])).logits[0, -1]
    return abs(float(logits[expected[at]] - logits[answer[at]])) < TIE
