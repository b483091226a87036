"""The Hugging Face adapter over tokenizers of both kinds."""

import asyncio
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gateway.errors import BadRequest, PromptTooLong
from gateway.openai import answer
from gateway.settings import DEMO_MODEL
from gateway.tokenizer import HFDetokenizer, HFTokenizer
from tests.unit import tokenizers_made as made

KINDS = {"byte level": made.byte_level(), "sentencepiece like": made.sentencepiece_like()}
LIMIT_TOKENS = 1000


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.save(KINDS[request.param], tmp_path_factory.mktemp("model"))


@pytest.fixture
def tokenizer(folder: str) -> Iterator[HFTokenizer]:
    loaded = HFTokenizer.load(folder, max_chars=1000)
    yield loaded
    loaded.close()


def chat(tokenizer: HFTokenizer, *turns: tuple[str, str]) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return asyncio.run(tokenizer.encode_chat(messages, LIMIT_TOKENS))


def test_encoding_is_the_models_own(tokenizer: HFTokenizer, folder: str) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    encoded = asyncio.run(tokenizer.encode(made.TEXTS[:3], LIMIT_TOKENS))
    assert encoded == [reference(text).input_ids for text in made.TEXTS[:3]]
    assert encoded[0][0] == reference.bos_token_id
    assert tokenizer.vocabulary == len(reference)


def test_a_chat_is_the_models_own_and_begins_once(tokenizer: HFTokenizer, folder: str) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hello"}]
    tokens = chat(tokenizer, ("user", "hello"))
    assert tokens == reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens.count(reference.bos_token_id) == 1


def test_a_developer_is_the_system_to_templates_that_do_not_know_the_word(tokenizer: HFTokenizer) -> None:
    assert chat(tokenizer, ("developer", "x")) == chat(tokenizer, ("system", "x"))


def test_what_the_template_refuses_is_a_bad_request(tokenizer: HFTokenizer) -> None:
    with pytest.raises(BadRequest, match="no tools") as caught:
        chat(tokenizer, ("tool", "x"))
    assert caught.value.param == "messages"


def test_a_model_without_template_cannot_chat(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.load(made.save(made.byte_level(), tmp_path, template=None))
    with pytest.raises(BadRequest, match="no chat template"):
        chat(tokenizer, ("user", "x"))
    tokenizer.close()


def test_texts_too_long_to_fit_are_refused_unread(tokenizer: HFTokenizer) -> None:
    with pytest.raises(BadRequest) as caught:
        asyncio.run(tokenizer.encode(["x" * 600, "y" * 600], LIMIT_TOKENS))
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(BadRequest) as caught:
        chat(tokenizer, ("user", "x" * 1001))
    assert caught.value.param == "messages"


def test_prompts_too_long_for_an_answer_are_counted_and_refused(tokenizer: HFTokenizer) -> None:
    short, long = asyncio.run(tokenizer.encode(["a", "a hello world"], LIMIT_TOKENS))
    assert len(short) < len(long)
    for limit_tokens in (len(long), len(short)):
        with pytest.raises(PromptTooLong) as caught:
            asyncio.run(tokenizer.encode(["a", "a hello world"], limit_tokens))
        assert str(caught.value) == f"{len(long)} tokens"
    assert asyncio.run(tokenizer.encode(["a", "a hello world"], len(long) + 1)) == [short, long]


def test_prompts_far_too_long_are_counted_in_their_beginnings(tokenizer: HFTokenizer) -> None:
    (whole,) = asyncio.run(tokenizer.encode(["é" * 900], 10**6))
    with pytest.raises(PromptTooLong, match="at least ") as caught:
        asyncio.run(tokenizer.encode(["a", "é" * 900], 8))
    assert 16 <= int(str(caught.value).split()[2]) < len(whole) / 2


def test_a_short_text_needs_no_turn_of_the_loop(tokenizer: HFTokenizer) -> None:
    encoding = tokenizer.encode(["a hello world"], LIMIT_TOKENS)
    with pytest.raises(StopIteration) as ended:
        encoding.send(None)
    assert ended.value.value == asyncio.run(tokenizer.encode(["a hello world"], LIMIT_TOKENS))


@pytest.mark.parametrize("turns", [["x" * 1000], 100 * ["x"]])
def test_a_long_text_does_not_hold_up_the_loop(turns: list[str]) -> None:
    """The template waits in its thread until the loop has shown that it runs."""
    loop_ran = threading.Event()

    class Slow:
        chat_template = "developer"
        backend_tokenizer = made.byte_level()

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            assert loop_ran.wait(5)
            return "hello"

    async def main() -> None:
        tokenizer = HFTokenizer(Slow(), [], max_chars=1000, threads=1)
        messages = [{"role": "user", "content": content} for content in turns]
        encoding = asyncio.ensure_future(tokenizer.encode_chat(messages, LIMIT_TOKENS))
        await asyncio.sleep(0)
        loop_ran.set()
        assert await encoding
        tokenizer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("file", "given_ids", "expected"),
    [
        ("generation_config.json", 7, {7}),
        ("generation_config.json", [7, 8], {7, 8}),
        ("generation_config.json", None, set()),
        ("config.json", [9], {9}),
    ],
)
def test_answers_end_where_the_model_says(tmp_path: Path, file: str, given_ids: Any, expected: set[int]) -> None:
    folder = made.save(made.byte_level(), tmp_path)
    (tmp_path / file).write_text(json.dumps({"eos_token_id": given_ids}))
    tokenizer = HFTokenizer.load(folder)
    own = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert set(tokenizer.eos_ids) == expected | {own}
    tokenizer.close()


def test_a_missing_model_is_an_oserror() -> None:
    with pytest.raises(OSError, match="no/such/model"):
        HFTokenizer.load("./no/such/model")


def test_a_model_with_a_slow_tokenizer_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(ValueError, match="no fast tokenizer"):
        HFTokenizer.load(str(tmp_path))


def test_a_tokens_own_text_keeps_its_space(tokenizer: HFTokenizer) -> None:
    (tokens,) = asyncio.run(tokenizer.encode(["a hello world"], LIMIT_TOKENS))
    assert "".join(tokenizer.token_text(token).text for token in tokens).endswith("a hello world")
    assert tokenizer.token_text(tokens[0]) == ("<s>", b"<s>")
    assert tokenizer.token_text(tokens[1]) == tokenizer.token_text(tokens[1])


def test_the_bytes_of_tokens_make_their_text(tokenizer: HFTokenizer) -> None:
    text = "x naïve café — 你好世界 🙂👨‍👩‍👧 \ufffd\x00"
    (tokens,) = asyncio.run(tokenizer.encode([text], LIMIT_TOKENS))
    texts = list(map(tokenizer.token_text, tokens[1:]))
    assert any(token.text == "\ufffd" for token in texts)
    assert b"".join(token.utf8 or b"?" for token in texts).decode().removeprefix(" ") == text


def test_every_token_has_its_own_name(tokenizer: HFTokenizer) -> None:
    names = Counter(answer.token_name(tokenizer.token_text(token)) for token in range(tokenizer.vocabulary))
    # A byte that is a character of its own may have a word beside its character's.
    assert not [name for name, count in names.items() if count > 1 and len(name) > 1]


def test_bytes_that_nobody_knows_are_none(tmp_path: Path) -> None:
    kind = made.sentencepiece_like()
    token = kind.get_vocab_size()
    kind.add_tokens(["of \ufffd"])
    tokenizer = HFTokenizer.load(made.save(kind, tmp_path))
    assert tokenizer.token_text(token).text.endswith("of \ufffd")
    assert tokenizer.token_text(token).utf8 is None
    tokenizer.close()


# Detokenising


remembered: defaultdict[int, dict[int, int]] = defaultdict(dict)
"""Of each tokenizer, over all texts."""


def stepped(tokenizer: Any, tokens: list[int], before: Sequence[int] = ()) -> tuple[list[str], str]:
    special = frozenset(tokenizer.token_to_id(word) for word in made.SPECIAL)
    detokenizer = HFDetokenizer(tokenizer, special, remembered[id(tokenizer)], before)
    return [detokenizer.step(token) for token in tokens], detokenizer.flush()


def assert_same_text(kind: str, tokens: list[int]) -> None:
    pieces, rest = stepped(KINDS[kind], tokens)
    assert "".join(pieces) + rest == KINDS[kind].decode(tokens, skip_special_tokens=True)


byte_level_tokens = st.integers(0, KINDS["byte level"].get_vocab_size() - 1)
words = st.integers(259, KINDS["sentencepiece like"].get_vocab_size() - 1) | st.sampled_from([1, 2])


@given(st.lists(byte_level_tokens, max_size=40))
def test_any_byte_level_tokens_make_the_text_of_all(tokens: list[int]) -> None:
    assert_same_text("byte level", tokens)


@given(st.lists(words, max_size=40))
def test_any_words_make_the_text_of_all(tokens: list[int]) -> None:
    assert_same_text("sentencepiece like", tokens)


@given(st.text())
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back(kind: str, text: str) -> None:
    assert_same_text(kind, KINDS[kind].encode(text).ids)


@given(st.lists(st.integers(0, KINDS["sentencepiece like"].get_vocab_size() - 1), max_size=40))
def test_invalid_bytes_neither_raise_nor_swallow_the_words_after_them(tokens: list[int]) -> None:
    hello = KINDS["sentencepiece like"].encode(" hello", add_special_tokens=False).ids
    pieces, rest = stepped(KINDS["sentencepiece like"], tokens + hello)
    assert ("".join(pieces) + rest).endswith("hello")


def test_pieces_are_whole_characters_as_soon_as_they_are_whole() -> None:
    tokens = KINDS["sentencepiece like"].encode("a🙂b", add_special_tokens=False).ids
    pieces, rest = stepped(KINDS["sentencepiece like"], tokens)
    assert ([piece for piece in pieces if piece], rest) == (["a", "🙂", "b"], "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_cut_short_shows_as_a_replacement(kind: str) -> None:
    tokens = KINDS[kind].encode("ok 🙂", add_special_tokens=False).ids
    cut = next(n for n in range(len(tokens)) if KINDS[kind].decode(tokens[: n + 1]).endswith("\ufffd")) + 1
    pieces, rest = stepped(KINDS[kind], tokens[:cut])
    assert "".join(pieces).startswith("ok")
    assert "\ufffd" not in "".join(pieces)
    assert set(rest.strip()) == {"\ufffd"}


@settings(max_examples=20)
@given(st.integers(3, 258), st.integers(20, 200))
def test_a_byte_for_ever_is_not_held_back_for_ever(byte: int, count: int) -> None:
    pieces, rest = stepped(KINDS["sentencepiece like"], [byte] * count)
    assert len(rest) <= 16
    assert len("".join(pieces)) >= count / 4 - 16


def test_special_tokens_keep_the_space_after_them() -> None:
    kind = KINDS["sentencepiece like"]
    hello = kind.encode("hello", add_special_tokens=False).ids
    pieces, rest = stepped(kind, [1, *hello, 2, 2, *hello])
    assert "".join(pieces) + rest == "hello hello"


def assert_goes_on(kind: str, prompt: list[int], answer: list[int]) -> None:
    """What a prompt leaves incomplete is the answer's to show."""
    shown, _ = stepped(KINDS[kind], prompt)
    pieces, rest = stepped(KINDS[kind], answer, prompt)
    assert "".join(shown + pieces) + rest == KINDS[kind].decode(prompt + answer, skip_special_tokens=True)


whole_text = st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]))


@given(whole_text, whole_text, st.integers(0, 40))
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_goes_on_after_its_prompt_wherever_that_ends(kind: str, text: str, more: str, cut: int) -> None:
    tokens = KINDS[kind].encode(text + more).ids
    assert_goes_on(kind, tokens[:cut], tokens[cut:])


@given(st.lists(byte_level_tokens, max_size=12), st.text())
def test_an_answer_goes_on_after_any_byte_level_tokens(prompt: list[int], text: str) -> None:
    answer = KINDS["byte level"].encode(text, add_special_tokens=False).ids
    pieces, rest = stepped(KINDS["byte level"], answer, prompt)
    whole = KINDS["byte level"].decode(prompt + answer, skip_special_tokens=True)
    assert whole.endswith("".join(pieces) + rest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("between", [[], [2], [2, 1, 2]])
def test_the_space_between_prompt_and_answer_is_kept(kind: str, between: list[int]) -> None:
    hello, world = (KINDS[kind].encode(word, add_special_tokens=False).ids for word in ("hello", " world"))
    if kind == "sentencepiece like":
        # As every text's, its first token is the space that its decoder drops.
        world = world[1:]
    pieces, rest = stepped(KINDS[kind], world, [1, *hello, *between])
    assert "".join(pieces) + rest == " world"


def test_a_chats_answer_keeps_the_space_after_a_template_that_ends_in_text(tokenizer: HFTokenizer) -> None:
    (world,) = asyncio.run(tokenizer.encode(["world"], LIMIT_TOKENS))
    detokenizer = tokenizer.detokenizer(chat(tokenizer, ("user", "hello")))
    inside = "".join(tokenizer.token_text(token).text for token in world[1:])
    assert "".join(map(detokenizer.step, world)) == inside


def test_after_special_tokens_alone_a_text_of_its_own_begins() -> None:
    kind = KINDS["sentencepiece like"]
    hello = kind.encode("hello", add_special_tokens=False).ids
    for before in ([], [1], [1, 2] * 10):
        pieces, rest = stepped(kind, hello, before)
        assert "".join(pieces) + rest == "hello"


@pytest.mark.asyncio
async def test_others_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer = HFTokenizer.load(DEMO_MODEL)
    encoding = asyncio.create_task(tokenizer.encode(["a story of " * 20_000], 10**6))
    turns = 0
    while not encoding.done():
        await asyncio.sleep(0)
        turns += 1
    tokenizer.close()
    assert len((await encoding)[0]) > 20_000
    assert turns > 100
