"""Trains the demo model from nothing: corpus, tokenizer, weights, all from one seed.

It exists so that the committed weights can be made again and nobody has to trust a download. Run
`python -m triton_backend.demo.train --out DIR --seed 0`. On one machine the same seed gives the
same weights, byte for byte: the number of steps is fixed, never the time, and threads are fixed at two.
The answers alone are learned (and bare texts); `packing` says
how much each token counts.
"""

import argparse
import ctypes
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from triton_backend.demo import corpus
from triton_backend.demo.muon import Muon
from triton_backend.demo.packing import Rows, encode, pack, shuffled, to_rows
from triton_backend.demo.vocabulary import END, MAX_POSITIONS, PAD, token, train_tokenizer, wrap


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to learn."""

    num_steps: int = 2_050
    """Optimizer steps."""
    rows: int = 4
    """Rows of one step."""
    row_tokens: int = 512
    """Tokens of a row: more than the longest story and its request."""
    recital_steps: int = 600
    """For so many steps, one row is text to repeat, and two rows for the first third of them: it teaches to
    look back, which stories need."""
    long_every: int = 20
    """Every so many steps, one row of a long chat takes the place of the short rows."""
    long_tokens: int = 2048
    """Tokens of a long row."""
    matrix_lr: float = 0.02
    """Peak rate of the matrices, learned by Muon."""
    other_lr: float = 0.004
    """Peak rate of embeddings and norms, learned by AdamW."""
    warmup_steps: int = 60
    """Steps until the rates peak; a cosine leads them down to zero."""


def batches(tokenizer: Tokenizer, plan: Plan, seed: int) -> Iterator[Rows]:
    short = shuffled(pack((encode(tokenizer, c) for c in corpus.chats(seed)), plan.row_tokens), seed)
    long = pack((encode(tokenizer, c) for c in corpus.long_chats(seed + 1)), plan.long_tokens, pool=4)
    recital = pack((encode(tokenizer, c) for c in corpus.recitals(seed + 3)), plan.row_tokens)
    for step in itertools.count(1):
        if step % plan.long_every == 0:
            yield to_rows([next(long)], plan.long_tokens)
            continue
        num_recitals = (step <= plan.recital_steps) + (3 * step <= plan.recital_steps)
        sources = [recital] * num_recitals + [short] * (plan.rows - num_recitals)
        yield to_rows([next(source) for source in sources], plan.row_tokens)


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=64,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=token(tokenizer, END),
        pad_token_id=token(tokenizer, PAD),
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, rows: Rows) -> torch.Tensor:
    """Weighted cross entropy. Only positions whose next token counts go through the output layer."""
    hidden = model.model(
        input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state
    weights = rows.weights[:, 1:]
    chosen = weights > 0
    logits = model.lm_head(hidden[:, :-1][chosen])
    losses = torch.nn.functional.cross_entropy(logits, rows.ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


def rate(step: int, plan: Plan) -> float:
    """Share of the peak rate at a step."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=plan.matrix_lr),
        torch.optim.AdamW(others, lr=plan.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def fit(model: LlamaForCausalLM, data: Iterator[Rows], plan: Plan) -> float:
    """Runs the plan; returns the mean loss of the last fifty steps."""
    chosen = optimizers(model, plan)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate(step, plan)) for o in chosen]
    model.train()
    recent: list[float] = []
    progress = tqdm(range(plan.num_steps), desc="train", mininterval=5)
    for _ in progress:
        loss = loss_of(model, next(data))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(chosen, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        recent = [*recent[-49:], loss.item()]
        progress.set_postfix(loss=f"{sum(recent) / len(recent):.4f}")
    return sum(recent) / len(recent)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Plain Hugging Face files; weights in bfloat16, which is what the engine runs and halves the file."""
    end, pad = token(tokenizer, END), token(tokenizer, PAD)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=end, pad_token_id=pad
    )
    model.bfloat16().save_pretrained(out)
    wrap(tokenizer).save_pretrained(out)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: handing tensors of 4 MB to the kernel and back took three quarters of a
    step. Elsewhere than on glibc, training is slower and the same."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 2**28)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model from its own corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Plan().num_steps, help="optimizer steps")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    plan = Plan(num_steps=arguments.steps)
    began = time.monotonic()
    tokenizer = train_tokenizer(itertools.islice(corpus.chats(arguments.seed + 2), 20_000))
    model = build_model(tokenizer)
    loss = fit(model, batches(tokenizer, plan, arguments.seed), plan)
    save(model, tokenizer, arguments.out)
    seconds = round(time.monotonic() - began)
    print(json.dumps({"loss": round(loss, 4), "seconds": seconds, "parameters": model.num_parameters()}))


if __name__ == "__main__":
    main()
