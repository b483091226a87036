"""What transformers' `generate()` says, and what counts as equal to it."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gateway.settings import DEMO_MODEL
from triton_backend.contract import Sampling
from triton_backend.sampling import Pick, noise

TIE = 1e-4
"""Two candidates whose logits differ by less may come out in either order."""

GREEDY = Sampling(temperature=0.0)


@cache
def model() -> Any:
    # The engine runs beside this on the same few cores, and threads that wait for each other wait long there.
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)


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


class Parting(NamedTuple):
    """Where an answer leaves the greedy path."""

    at: int
    expected: int
    margin: float
    """By how much the expected token's logit is above the answer's."""


def partings(
    prompt: Sequence[int], answer: Sequence[int], min_tokens: int = 0, sampling: Sampling = GREEDY
) -> list[Parting]:
    """Positions at which the answer is not what the model says next, given the prompt and the answer before them:
    none, exactly if `generate()` would have given this answer.  One forward pass instead of one per token.
    Of `sampling` only temperature and seed count."""
    with torch.inference_mode():
        logits = model()(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        logits[:min_tokens, tokenizer().eos_token_id] = float("-inf")
        if sampling.temperature:
            picks = [Pick(index, sampling, index, []) for index in range(len(answer))]
            logits = logits / sampling.temperature + noise(picks, logits.shape[-1], logits.device)
    best = logits.argmax(-1)
    chosen = torch.tensor(list(answer))
    return [
        Parting(int(at), int(best[at]), float(logits[at, best[at]] - logits[at, chosen[at]]))
        for at in (best != chosen).nonzero()[:, 0]
    ]


def logprobs(prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Of each of the answer's tokens, under the model's own logits."""
    with torch.inference_mode():
        logits = model()(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(list(answer))[:, None])
    return [float(logprob) for logprob in chosen[:, 0]]
