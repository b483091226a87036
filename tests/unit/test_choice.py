"""Text goes out as soon as it is safe, and never a part of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choice import Choice, StopStrings
from gateway.request import FinishReason, TokenLogprob, Work
from tests.unit.fakes.tokenizer import CharTokenizer
from triton_backend.contract import Sampling


def choice(stops: list[str], min_tokens: int = 0, logprobs: bool = False) -> Choice:
    work = Work([ord("?")], min_tokens, [], Sampling(logprobs=0 if logprobs else None))
    return Choice(0, work, stops, CharTokenizer())


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the first place at which some stop string is complete."""
    for end in range(len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: min(text.find(s) for s in stops if s in text[:end])], True
    return text, False


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.text("abc", max_size=24),
    st.integers(1, 5),
)
def test_stop_strings_cut_the_same_however_the_text_is_split(stops: list[str], text: str, size: int) -> None:
    matcher = StopStrings(stops)
    sent, stopped = "", False
    for at in range(0, len(text), size):
        piece, stopped = matcher.feed(text[at : at + size])
        sent += piece
        if stopped:
            break
        assert not any(stop in sent for stop in stops)
    if not stopped:
        sent += matcher.flush()
    if size == 1:
        assert (sent, stopped) == reference(text, stops)
    assert not any(stop in sent for stop in stops) or not stopped
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(sent)


def test_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    one = choice(["END"])
    deltas = [one.push(ord(char), None) for char in "aENb"]
    assert [delta and delta.text for delta in deltas] == ["a", None, None, "ENb"]
    assert deltas[-1] is not None
    assert list(deltas[-1].tokens) == [ord(char) for char in "ENb"]
    assert (deltas[-1].num_tokens, deltas[-1].num_chars) == (4, 4)


def test_a_complete_stop_string_ends_the_choice_without_it() -> None:
    one = choice(["END"])
    deltas = [one.push(ord(char), None) for char in "aEND"]
    assert deltas[-1] is not None
    assert (deltas[-1].text, deltas[-1].finish_reason) == ("", FinishReason.STOP)


def test_what_is_held_back_is_sent_when_the_engine_ends() -> None:
    one = choice(["END"])
    one.push(ord("E"), None)
    last = one.end(FinishReason.LENGTH)
    assert (last.text, last.finish_reason, list(last.tokens)) == ("E", FinishReason.LENGTH, [ord("E")])


def test_stop_strings_wait_for_min_tokens() -> None:
    one = choice(["b"], min_tokens=3)
    deltas = [one.push(ord(char), None) for char in "abab"]
    assert [delta and (delta.text, delta.finish_reason) for delta in deltas] == [
        ("a", None),
        ("b", None),
        ("a", None),
        ("", FinishReason.STOP),
    ]


def test_log_probabilities_go_out_with_their_tokens_even_without_text() -> None:
    one = choice(["ab"], logprobs=True)
    logprob = TokenLogprob(ord("a"), -0.5, [])
    delta = one.push(ord("a"), logprob)
    assert delta is not None
    assert (delta.text, delta.logprobs) == ("", [logprob])


@pytest.mark.parametrize("logprobs", [False, True])
def test_deltas_carry_every_token_once(logprobs: bool) -> None:
    one = choice(["xyz"], logprobs=logprobs)
    text = "axyaxaxy"
    deltas = [one.push(ord(char), TokenLogprob(ord(char), 0.0, [])) for char in text]
    deltas.append(one.end(FinishReason.STOP))
    tokens = [token for delta in deltas if delta for token in delta.tokens]
    assert "".join(map(chr, tokens)) == text
    assert "".join(delta.text for delta in deltas if delta) == text
