"""Whether rows draw what the model draws for their prompts alone, through the whole engine: chunks, evictions,
blocks, recorded steps and all."""

import random
from typing import NamedTuple

import msgspec
import torch
from transformers import GenerationMixin, PreTrainedModel

from benchmarks.gpu.shapes import SHAPES, build, kv_bytes_per_token
from tests.unit.peer import Peer, new_row
from triton_backend.contract import NewRow, Sampling
from triton_backend.engine import Engine, EngineConfig
from triton_backend.paged_cache import BLOCK_TOKENS
from triton_backend.paged_runner import PagedRunner

TIE = 1e-4
SQUEEZED = 0.4


class Found(NamedTuple):
    num_rows: int
    num_tokens: int
    num_equal: int
    """Rows whose tokens are those of `generate`."""
    num_ties: int
    """Tokens that are not the reference's best, which is closer than TIE."""
    num_wrong: int
    """Tokens that are not, and it is not."""
    agreement: float
    """Share of positions at which no token is better by the reference than the one drawn, after the same text."""
    own_agreement: float
    """The same of what `generate` itself draws."""
    num_put_back: int


def prompts(shape: str, count: int, longest: int) -> list[list[int]]:
    rng = random.Random(3)
    vocabulary = int(SHAPES[shape].vocab_size)
    lengths = [1, longest, *(rng.randint(2, longest) for _ in range(count - 2))]
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


def drawn(
    model: PreTrainedModel, rows: list[NewRow], share: float, max_prefill_tokens: int
) -> tuple[list[list[int]], int]:
    """The tokens of each with room for a `share` of what all need, but always for any one; and how often a row was
    put back for want of it."""
    rooms = [-(-(len(row.prompt) + row.max_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS for row in rows]

    def load(config: EngineConfig) -> PagedRunner:
        budget_bytes = int(max(max(rooms), share * sum(rooms))) * kv_bytes_per_token(model)
        return PagedRunner(model, max_prefill_tokens=max_prefill_tokens, kv_budget_bytes=budget_bytes)

    engine = Engine(EngineConfig(model="", name="exact", max_prefill_tokens=max_prefill_tokens), load)
    peer = Peer(engine)
    engine.step()
    peer.put(rows[::2])
    for _ in range(6):
        engine.step()
    peer.put(rows[1::2])
    peer.run()
    engine.stop(0.0)
    tokens = [peer.tickets[row.ticket].tokens for row in rows]
    return tokens, sum(ticket.attempts - 1 for ticket in peer.tickets.values())


@torch.inference_mode()
def gaps(reference: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[float]:
    """By how much the reference's best is better than each token, after the same text."""
    ids = torch.tensor([prompt + tokens], device=reference.device)
    logits = reference(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    found: list[float] = (logits.max(-1).values - chosen).tolist()
    return found


def compare(shape: str, device: str, dtype: torch.dtype, num_rows: int, num_tokens: int) -> Found:
    """Greedy rows through an engine so small that rows are put back, against `generate` for each alone."""
    texts = prompts(shape, num_rows, longest=6 * num_tokens)
    rows = [new_row(at, text, num_tokens) for at, text in enumerate(texts)]
    # In chunks of about a third of the longest prompt.
    ours, num_put_back = drawn(build(shape, device, dtype), rows, SQUEEZED, 2 * num_tokens)
    reference = build(shape, device, dtype)
    reference.set_attn_implementation("eager")
    theirs = [generated(reference, text, num_tokens) for text in texts]
    ours_gaps = [gap for text, tokens in zip(texts, ours, strict=True) for gap in gaps(reference, text, tokens)]
    own_gaps = [gap for text, tokens in zip(texts, theirs, strict=True) for gap in gaps(reference, text, tokens)]
    return Found(
        num_rows=num_rows,
        num_tokens=len(ours_gaps),
        num_equal=sum(mine == other for mine, other in zip(ours, theirs, strict=True)),
        num_ties=sum(0 < gap < TIE for gap in ours_gaps),
        num_wrong=sum(gap >= TIE for gap in ours_gaps),
        agreement=sum(gap == 0 for gap in ours_gaps) / len(ours_gaps),
        own_agreement=sum(gap == 0 for gap in own_gaps) / len(own_gaps),
        num_put_back=num_put_back,
    )


def compare_seeded(shape: str, device: str, num_rows: int, num_tokens: int) -> int:
    """Rows of those that sample whose tokens are the same in a crowd that is put back as with room for all."""
    kinds = [Sampling(), Sampling(top_k=9), Sampling(temperature=0.7), Sampling(top_p=0.9)]
    texts = prompts(shape, num_rows, longest=3 * num_tokens)
    rows = [
        new_row(at, text, num_tokens, sampling=msgspec.structs.replace(kinds[at % 4], seed=at))
        for at, text in enumerate(texts)
    ]
    model = build(shape, device, torch.float32)
    squeezed, _ = drawn(model, rows, SQUEEZED, 2 * num_tokens)
    at_ease, _ = drawn(model, rows, 1.0, 100 * num_tokens)
    return sum(one == two for one, two in zip(squeezed, at_ease, strict=True))


def generated(reference: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    ids = torch.tensor([prompt], device=reference.device)
    out = GenerationMixin.generate(
        reference,  # type: ignore[arg-type]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens
