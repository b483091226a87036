"""The demo model: a corpus that follows from its seed, tokens that keep any text, answers that end.

Excluded: training itself, which takes minutes; the weights under test are the committed ones.
"""

import itertools
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from triton_backend.demo import corpus, packing, stories
from triton_backend.demo.stories import Length
from triton_backend.demo.words import FRIEND_NAMES, GIVEN_NAMES

MODEL = Path(corpus.__file__).parent / "model"
MAX_ANSWER_TOKENS = 450


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """Nothing here may reach for a network. One thread: steps this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


RAW = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


class Chatter:
    """The committed model with its tokenizer; answers greedily."""

    def __init__(self) -> None:
        # transformers' own types do not fit its own calls, so they stop here.
        self.model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
        self.tokenizer.padding_side = "left"

    def ask(self, prompts: list[str]) -> list[list[int]]:
        """One answer a prompt in tokens, the end included where it came."""
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        batch = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False
            )
        end = self.tokenizer.eos_token_id
        rows: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def text(self, answer: list[int]) -> str:
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def written(self, messages: list[dict[str, Any]], *, prompt: bool) -> str:
        """What the chat template makes of the messages."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


@pytest.fixture(scope="module")
def chatter() -> Chatter:
    return Chatter()


# --- the corpus ---


def test_same_seed_same_chats() -> None:
    first, again, other = (list(itertools.islice(corpus.chats(seed), 200)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_chats_are_well_formed() -> None:
    """A system message only at the start, then question and answer in turn, and nothing is empty."""
    for chat in itertools.islice(corpus.chats(1), 2000):
        roles = [message.role for message in chat if message.role != "system"]
        assert all(message.content.strip() for message in chat)
        assert roles == ["text"] or roles == ["user", "assistant"] * (len(roles) // 2)
        assert [message.role for message in chat].count("system") in (0, int(chat[0].role == "system"))


def test_no_slot_stays_open() -> None:
    rng = random.Random(2)
    for made in (corpus.exchange(rng) for _ in range(3000)):
        assert not {"{", "}"} & set(made.answer), made


def test_length_follows_from_the_request() -> None:
    """Every answer to a longer class is longer in the median, and stories never overlap between classes."""
    rng = random.Random(3)
    lengths: dict[str, list[int]] = {}
    for made in (corpus.exchange(rng) for _ in range(6000)):
        lengths.setdefault(made.kind, []).append(len(RAW.encode(made.answer).ids))
    order = [
        "capital_word",
        "explain_1",
        "explain_2",
        "explain_4",
        "story_short",
        "story_medium",
        "story_long",
    ]
    medians = [statistics.median(lengths[kind]) for kind in order]
    assert medians == sorted(medians)
    assert max(lengths["story_short"]) < min(lengths["story_medium"])
    assert max(lengths["story_medium"]) < min(lengths["story_long"])


@pytest.mark.parametrize("length", list(Length), ids=lambda length: length.value)
def test_a_story_keeps_its_characters(length: Length) -> None:
    """Only the hero and the friend of the cast are named."""
    rng = random.Random(4)
    cast = stories.random_cast(rng, "fox")
    strangers = {name.text for name in (*GIVEN_NAMES, *FRIEND_NAMES)} - {cast.name.text, cast.friend_name.text}
    for _ in range(50):
        text = stories.tell(rng, cast, length)
        assert "fox" in text and cast.name.text in text and cast.friend_name.text in text
        assert not strangers & set(text.replace(".", " ").replace(",", " ").split())


# --- the tokens ---


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives(text: str) -> None:
    assert RAW.decode(RAW.encode(text).ids, skip_special_tokens=False) == text


def test_the_template_writes_what_was_trained(chatter: Chatter) -> None:
    for chat in itertools.islice(corpus.chats(5), 100):
        if chat[0].role == "text":
            continue
        messages = [{"role": message.role, "content": message.content} for message in chat]
        assert RAW.encode(chatter.written(messages, prompt=False)).ids == packing.encode(RAW, chat).ids


def test_content_in_parts_reads_like_a_string(chatter: Chatter) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a fox?"}]
    texts = [chatter.written([{"role": "user", "content": c}], prompt=True) for c in ("What is a fox?", parts)]
    assert texts == ["<|user|>What is a fox?<|end|><|assistant|>"] * 2


# --- the weights ---


def test_the_files_are_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 8 * 1024 * 1024
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 9 * 1024 * 1024


PROMPTS = [
    "Hello!",
    "Who are you?",
    "What is 7 + 8?",
    "12 - 5",
    "What is the capital of France?",
    "What colour is the sky, in one word?",
    "What comes after Tuesday?",
    "Explain rain in one sentence.",
    "Describe the moon in detail.",
    "Why is the sky blue?",
    "Tell me a short story about a fox.",
    "Write a story about a robot.",
    "List three animals.",
    "Count to 12.",
    "Write a poem about a rose.",
    "Say hello three times.",
    "Name four colours.",
    "Give me a list of 7 tools.",
    "Who wrote Faust?",
    "asdf qwer zxcv",
    "你好",
]


BY_LENGTH = [
    "What is a fox? Answer in one word.",
    "What is a fox? Answer in one sentence.",
    "Tell me a short story about a fox.",
    "Tell me a story about a fox.",
]
LONG = "Tell me a long story about a fox."


def test_it_stops_by_itself(chatter: Chatter) -> None:
    for prompt, answer in zip(PROMPTS, chatter.ask(PROMPTS), strict=True):
        assert answer[-1] == chatter.tokenizer.eos_token_id, prompt
        assert chatter.text(answer).strip(), prompt


def test_its_length_follows_from_the_request(chatter: Chatter) -> None:
    """The long story is asked for alone, so that no other row takes its four hundred steps with it."""
    lengths = [len(answer) for answer in [*chatter.ask(BY_LENGTH), *chatter.ask([LONG])]]
    assert lengths == sorted(set(lengths))
    assert lengths[0] <= 4
    assert 10 <= lengths[1] <= 30
    assert 60 <= lengths[2] <= 110
    assert 110 <= lengths[3] <= 180
    assert 250 <= lengths[4] <= 400


SAID = {
    "What is 2+2?": "2 plus 2 is 4.",
    "What is 7 + 8? Answer in one word.": "15",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "In one word, what is the opposite of hot?": "Cold",
    "Count to 5.": "1, 2, 3, 4, 5.",
}


def test_it_knows_a_few_things(chatter: Chatter) -> None:
    assert [chatter.text(answer) for answer in chatter.ask(list(SAID))] == list(SAID.values())
