"""Greedy fp32 answers through the whole stack equal transformers' `generate()`, whatever happens to their rows."""

import asyncio
import random

import pytest

from gateway.openai.answer import token_name
from gateway.settings import DEMO_MODEL
from gateway.tokenizer import HFTokenizer
from tests.stack import client, reference
from tests.stack.client import Answer
from tests.stack.conftest import TIGHT_BYTES
from tests.stack.serving import Serving

pytestmark = pytest.mark.timeout(300)

Load = list[tuple[list[int], int]]


def load(count: int, longest: int, seed: int = 0) -> Load:
    """Prompts of mixed lengths made of text, and how long their answers may be."""
    rng = random.Random(seed)
    words = ["the fox", "a story", "long", "short", "about", "in one word", "and then", "it went home", "7"]
    ids = reference.tokenizer()(" ".join(rng.choice(words) for _ in range(4 * longest)))["input_ids"]
    requests: Load = []
    for number in range(count):
        length = int(8 * (longest / 8) ** (number / (count - 1)))
        start = rng.randrange(len(ids) - length)
        requests.append((ids[start : start + length], rng.choice([1, 8, 40, 120])))
    rng.shuffle(requests)
    return requests


async def ask_all(serving: Serving, requests: Load, **fields: object) -> list[Answer]:
    """All at once, every second one streamed."""
    async with client.session(serving.url) as session:
        return await asyncio.gather(
            *(
                (client.stream if at % 2 else client.complete)(
                    session, serving.model, prompt, max_tokens=most, **fields
                )
                for at, (prompt, most) in enumerate(requests)
            )
        )


def check(requests: Load, answers: list[Answer], min_tokens: int = 0) -> None:
    """Tokens, text and usage are the reference's: every token on the greedy path, and every eighth answer also
    compared with `generate()` itself."""
    ours = HFTokenizer.load(DEMO_MODEL)
    id_of = {token_name(ours.token_text(token)): token for token in reversed(range(ours.vocabulary))}
    ties = total = 0
    for number, ((prompt, most), answer) in enumerate(zip(requests, answers, strict=True)):
        tokens = [id_of[text] for text in answer.token_texts]
        apart = reference.partings(prompt, tokens, min_tokens)
        assert all(parting.margin < reference.TIE for parting in apart), (prompt, most, answer, apart)
        if number % 8 == 0 and not apart:
            assert tokens == reference.greedy(prompt, most, min_tokens)
        assert answer.text == reference.tokenizer().decode(tokens, skip_special_tokens=True)
        assert answer.usage["prompt_tokens"] == len(prompt)
        assert answer.usage["completion_tokens"] == len(tokens)
        assert answer.finish_reason == ("stop" if ends(tokens) else "length")
        assert ends(tokens) or len(tokens) == most
        ties += len(apart)
        total += len(tokens)
    ours.close()
    print(f"{total} tokens, {ties} ties")
    assert ties <= total / 10_000


def ends(tokens: list[int]) -> bool:
    return tokens[-1] == int(reference.tokenizer().eos_token_id)


def test_64_clients_at_once(serving: Serving) -> None:
    requests = load(64, longest=1500)
    check(requests, client.run(ask_all(serving, requests, temperature=0)))


def test_memory_for_a_tenth_of_the_load(tight: Serving) -> None:
    """Short answers teach the profiler that answers are short; then long ones outgrow their prediction, rows are
    evicted and put back, and nobody notices."""
    (sample,) = client.run(ask_all(tight, [([5, 6, 7], 8)], temperature=0))
    teach: Load = [([5, 6, 7], 8)] * 64
    client.run(ask_all(tight, teach, temperature=0, stop=sample.text[:1]))
    requests = [(prompt, 120) for prompt, _ in load(64, longest=300, seed=1)]

    async def ask_and_watch() -> tuple[list[Answer], list[float]]:
        asking = asyncio.create_task(ask_all(tight, requests, temperature=0, min_tokens=100))
        used_bytes = []
        while not asking.done():
            used_bytes.append(await asyncio.to_thread(tight.metric, "bucketserve_kv_used_bytes"))
            await asyncio.sleep(0.05)
        return asking.result(), used_bytes

    answers, used_bytes = client.run(ask_and_watch())
    check(requests, answers, min_tokens=100)
    assert 0 < max(used_bytes) <= TIGHT_BYTES
    assert tight.metric("bucketserve_put_backs_total", reason="evicted") > 0
    assert tight.metric("bucketserve_kv_capacity_bytes") == TIGHT_BYTES


def test_seeded_samples_are_the_same_alone_and_in_a_crowd(serving: Serving) -> None:
    requests = [(prompt, 40) for prompt, _ in load(24, longest=200, seed=2)]
    fields = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": 1234}

    async def alone() -> list[Answer]:
        async with client.session(serving.url) as session:
            return [
                await client.complete(session, serving.model, prompt, max_tokens=most, **fields)
                for prompt, most in requests
            ]

    crowd = client.run(ask_all(serving, requests, **fields))
    for one, other in zip(client.run(alone()), crowd, strict=True):
        assert one.text == other.text
        assert one.token_texts == other.token_texts
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
