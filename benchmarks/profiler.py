"""How well answer lengths are predicted: `python -m benchmarks.profiler --out FOLDER [--answers 8000]`.

Lets the demo model answer requests of its corpus, half of them greedily (FOLDER keeps the answers for the next
time), and replays them in order: each is predicted, then learned from.  Prints a table; FOLDER/profiler.json has
it too.
"""

import argparse
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoTokenizer

from gateway.policy.features import Features
from gateway.policy.history import LengthHistory, Sample, Seen
from gateway.policy.length import MIN_HISTORY, UPPER_QUANTILE, Mode, Predictor, pinball_loss
from gateway.policy.snapshot import PER_OCTAVE, Snapshot
from gateway.ports import MAX_SAMPLES
from gateway.request import ServiceClass
from gateway.settings import DEMO_MODEL
from gateway.training import train
from tests.unit.peer import Peer, Ticket, new_row
from triton_backend.contract import End, NewRow, Sampling
from triton_backend.demo import corpus
from triton_backend.engine import Engine, EngineConfig

SEED = 12345
"""Not the corpus seed that the model was trained on."""
LIMITS = (32, 128, 512, 1024)
ROWS = 64
SETTLED = 1000
"""Answers before which nothing is counted."""
TRAIN_EVERY = 256


class Answer(msgspec.Struct, frozen=True, array_like=True):
    prompt: list[int]
    max_tokens: int
    tokens: int
    is_cut: bool


# Answers


def prompts(tokenizer: Any) -> Iterator[list[int]]:
    """Chats of the corpus up to their last question."""
    for chat in corpus.chats(SEED):
        if chat[-1].role == "assistant":
            turns = [{"role": message.role, "content": message.content} for message in chat[:-1]]
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            yield tokenizer.encode(text, add_special_tokens=False)


def requests(count: int) -> Iterator[NewRow]:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    rng = random.Random(SEED)
    for number, prompt in zip(range(count), prompts(tokenizer), strict=False):
        sampling = Sampling(0.0) if number % 2 else Sampling(0.8, top_p=0.95, seed=number)
        end = [tokenizer.eos_token_id]
        yield new_row(number, prompt, rng.choice(LIMITS), stop_ids=end, sampling=sampling)


def answered(count: int) -> list[Answer]:
    """The engine's answers, in the order of their requests."""
    torch.set_num_threads(1)
    peer = Peer(Engine(EngineConfig(model=DEMO_MODEL, name="demo", kv_budget_bytes=2**30, threads=1)))
    peer.engine.step()
    waiting = deque(requests(count))
    bar = tqdm(total=count, unit="answer")
    while waiting or peer.live:
        if waiting and len(peer.live) < ROWS:
            peer.put([waiting.popleft() for _ in range(min(16, len(waiting)))])
        peer.engine.step()
        peer.put_back()
        peer.steps.clear()
        bar.update(len(peer.tickets) - len(peer.live) - bar.n)
    return [_answer(ticket) for ticket in peer.tickets.values()]


def _answer(ticket: Ticket) -> Answer:
    assert ticket.ending is not None
    is_cut = ticket.ending.reason is End.LENGTH
    return Answer(ticket.first.prompt, ticket.first.max_tokens, len(ticket.tokens), is_cut)


# Predictors


class Guess(NamedTuple):
    upper_tokens: int
    octave: int
    """The likeliest floor of log2 of the length."""


class Rival(Protocol):
    def predict(self, answer: Answer) -> Guess: ...
    def observe(self, answer: Answer) -> None: ...


class Limit:
    """What the request allows."""

    def predict(self, answer: Answer) -> Guess:
        return Guess(answer.max_tokens, octave(answer.max_tokens))

    def observe(self, answer: Answer) -> None:
        pass


class Recent:
    """The quantile of the recent answers, of each group for itself."""

    def __init__(self, by_prompt_length: bool) -> None:
        self._by_prompt_length = by_prompt_length
        self._groups: dict[int, tuple[LengthHistory, deque[int]]] = {}

    def _group(self, answer: Answer) -> tuple[LengthHistory, deque[int]]:
        number = octave(len(answer.prompt)) if self._by_prompt_length else 0
        return self._groups.setdefault(number, (LengthHistory(), deque(maxlen=512)))

    def predict(self, answer: Answer) -> Guess:
        history, octaves = self._group(answer)
        if len(history) < MIN_HISTORY:
            return Limit().predict(answer)
        upper = min(math.ceil(min(history.quantile(UPPER_QUANTILE), 1e9)), answer.max_tokens)
        return Guess(upper, min(Counter(octaves).most_common(1)[0][0], octave(answer.max_tokens)))

    def observe(self, answer: Answer) -> None:
        history, octaves = self._group(answer)
        history.observe(answer.tokens, answer.is_cut)
        octaves.append(octave(answer.tokens))


class Learned:
    """The gateway's predictor, trained on the spot."""

    def __init__(self) -> None:
        self.predictor = Predictor()
        self.modes: Counter[Mode] = Counter()
        self.train_s: list[float] = []
        self._snapshot: Snapshot | None = None
        self._window: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._num_new = 0
        self._features: Features

    def predict(self, answer: Answer) -> Guess:
        self.modes[self.predictor.mode] += 1
        self._features = features_of(self.predictor, answer)
        profile = self.predictor.predict(self._features, answer.max_tokens, ignore_eos=False)
        return Guess(profile.upper_tokens, min(self._octave(), octave(answer.max_tokens)))

    def _octave(self) -> int:
        if self._snapshot is None:
            return 0
        totals: dict[int, float] = {}
        probabilities = self._snapshot.probabilities(self._features)
        for one, probability in zip(self._snapshot.classes, probabilities, strict=True):
            number = one.number // PER_OCTAVE
            totals[number] = totals.get(number, 0.0) + float(probability)
        return max(totals, key=totals.__getitem__)

    def observe(self, answer: Answer) -> None:
        self.predictor.observe(self._features, answer.max_tokens, answer.tokens, answer.is_cut)
        self._window.append(Sample(self._features, Seen(answer.tokens, answer.is_cut)))
        self._num_new += 1
        if self._num_new == TRAIN_EVERY:
            self._num_new = 0
            begun_s = time.perf_counter()
            self._snapshot = train(self._window)
            self.train_s.append(time.perf_counter() - begun_s)
            if self._snapshot:
                self.predictor.adopt(self._snapshot)


def octave(tokens: int) -> int:
    return tokens.bit_length() - 1


def features_of(predictor: Predictor, answer: Answer) -> Features:
    return predictor.features(answer.prompt, answer.max_tokens, ServiceClass.DEFAULT, "")


# The comparison


def shifted(answers: list[Answer]) -> list[Answer]:
    """First those to short prompts, then those to long ones."""
    middle = sorted(len(answer.prompt) for answer in answers)[len(answers) // 2]
    return sorted(answers, key=lambda answer: len(answer.prompt) > middle)


def replay(rival: Rival, answers: list[Answer], first: int = SETTLED) -> dict[str, float]:
    """Mean figures of the answers from number `first` on."""
    rows: list[tuple[float, ...]] = []
    for answer in answers:
        guess = rival.predict(answer)
        rival.observe(answer)
        is_right, is_covered = guess.octave == octave(answer.tokens), answer.tokens <= guess.upper_tokens
        rows.append((is_right, pinball_loss(guess.upper_tokens, answer.tokens), is_covered, guess.upper_tokens))
    names = ("class_accuracy", "pinball_tokens", "coverage", "mean_upper_tokens")
    return dict(zip(names, np.mean(rows[first:], axis=0).tolist(), strict=True))


def cost_us(predictor: Predictor, answers: list[Answer]) -> dict[str, float]:
    """Per request, with the replay's model in use."""
    begun_s = time.perf_counter()
    features = [features_of(predictor, answer) for answer in answers]
    taken_s = time.perf_counter()
    for each, answer in zip(features, answers, strict=True):
        predictor.predict(each, answer.max_tokens, ignore_eos=False)
    predicted_s = time.perf_counter()
    for each, answer in zip(features, answers, strict=True):
        predictor.observe(each, answer.max_tokens, answer.tokens, answer.is_cut)
    observed_s = time.perf_counter()
    spans = {"features": taken_s - begun_s, "predict": predicted_s - taken_s, "observe": observed_s - predicted_s}
    return {name: span_s / len(answers) * 1e6 for name, span_s in spans.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers and the results")
    parser.add_argument("--answers", type=int, default=8000, help="how many, when FOLDER has none yet")
    options = parser.parse_args()
    if options.answers <= 2 * SETTLED:
        parser.error(f"--answers: more than {2 * SETTLED}, as of each half the first {SETTLED} are not counted")
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / "answers.msgpack"
    if not cache.exists():
        cache.write_bytes(msgspec.msgpack.encode(answered(options.answers)))
    answers = msgspec.msgpack.decode(cache.read_bytes(), type=list[Answer])
    learned = Learned()
    rivals: dict[str, Rival] = {
        "max_tokens": Limit(),
        "global quantile": Recent(by_prompt_length=False),
        "quantile by prompt length": Recent(by_prompt_length=True),
        "learned": learned,
    }
    results: dict[str, Any] = {name: replay(rival, answers) for name, rival in tqdm(rivals.items(), unit="replay")}
    results["learned, after a shift"] = replay(Learned(), shifted(answers), len(answers) // 2 + SETTLED)
    for name, figures in results.items():
        print(f"{name:26}", "  ".join(f"{key} {figure:.3f}" for key, figure in figures.items()))
    results["answers"] = len(answers)
    results["modes"] = learned.modes
    results["train_s"] = float(np.mean(learned.train_s))
    results["cost_us"] = cost_us(learned.predictor, answers[:SETTLED])
    print(json.dumps({key: results[key] for key in ("answers", "modes", "train_s", "cost_us")}))
    (options.out / "profiler.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
