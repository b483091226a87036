"""Whether a stream brought what it should have: compared with the model alone, token by token."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import pytest

from gateway.openai.answer import token_name
from gateway.settings import DEMO_MODEL
from gateway.tokenizer import HFTokenizer
from tests.stack import reference
from tests.stack.crowd import Question, Stream

LOGPROB_MARGIN = 1e-3
_WINDOW = 12
"""So many equal tokens or characters tell where an answer goes on."""


class Verdict(StrEnum):
    EXACT = "exact"
    CUT = "cut"
    """Its own gateway was killed; until then it was exact."""
    LOST = "lost"
    """It did not come to its end, or tokens are missing."""
    DUPLICATED = "duplicated"
    WRONG = "wrong"


class Answer(NamedTuple):
    token_texts: list[str]
    logprobs: list[float]
    text: str


class Judge:
    def __init__(self) -> None:
        self._tokenizer = HFTokenizer.load(DEMO_MODEL)
        self._id_of = {
            token_name(self._tokenizer.token_text(token)): token for token in range(self._tokenizer.vocabulary)
        }
        self._right: dict[Question, list[Answer]] = {}
        """One answer a question, and more where there were ties."""
        self.num_tokens = 0
        self.num_ties = 0

    def close(self) -> None:
        self._tokenizer.close()

    def judge(self, streams: Iterable[Stream]) -> dict[Stream, Verdict]:
        # Of those without log probabilities only the text is known: the others tell what is right.
        ordered = sorted(streams, key=lambda stream: (not stream.has_logprobs, not stream.finish_reason))
        return {stream: self._verdict(stream) for stream in ordered}

    def _verdict(self, stream: Stream) -> Verdict:
        self.num_tokens += len(stream.token_texts)
        answer = self._answer(stream)
        if answer is None:
            return self._blame(stream)
        if stream.finish_reason is None:
            return Verdict.CUT if stream.is_cut else Verdict.LOST
        return Verdict.EXACT if _is_complete(stream, answer) else Verdict.WRONG

    def _answer(self, stream: Stream) -> Answer | None:
        """The right answer that the stream has, or had begun."""
        known = self._right.setdefault(stream.question, [])
        for answer in known:
            if _has(stream, answer):
                return answer
        if not stream.has_logprobs or stream.failure:
            # Nothing else was heard of the question yet, or it is wrong.
            return None if known or stream.text else Answer([], [], "")
        checked = self._checked(stream)
        if checked is not None:
            known.append(checked)
        return checked

    def _checked(self, stream: Stream) -> Answer | None:
        """The stream's answer, if the model alone gives it too."""
        question = stream.question
        tokens = [self._id_of[text] for text in stream.token_texts]
        apart = reference.partings(question.prompt, tokens, sampling=question.sampling)
        if any(parting.margin >= reference.TIE for parting in apart):
            return None
        self.num_ties += len(apart)
        logprobs = reference.logprobs(question.prompt, tokens)
        text = str(reference.tokenizer().decode(tokens, skip_special_tokens=True))
        return Answer(stream.token_texts, logprobs, text)

    def _blame(self, stream: Stream) -> Verdict:
        known = self._right[stream.question]
        if not known:
            return Verdict.WRONG
        if stream.has_logprobs:
            return _difference(stream.token_texts, known[0].token_texts)
        return _difference(stream.text, known[0].text)


def _has(stream: Stream, answer: Answer) -> bool:
    if stream.finish_reason is None:
        begun = answer.token_texts[: len(stream.token_texts)]
        return stream.token_texts == begun and answer.text.startswith(stream.text)
    return stream.text == answer.text and (not stream.has_logprobs or stream.token_texts == answer.token_texts)


def _is_complete(stream: Stream, answer: Answer) -> bool:
    """Usage, finish reason and log probabilities too."""
    num_tokens = stream.question.max_tokens
    return (
        stream.finish_reason == "length"
        and stream.usage.get("prompt_tokens") == len(stream.question.prompt)
        and stream.usage.get("completion_tokens") == num_tokens == len(answer.token_texts)
        and (not stream.has_logprobs or stream.logprobs == pytest.approx(answer.logprobs, abs=LOGPROB_MARGIN))
    )


def _difference(got: Sequence[str], right: Sequence[str]) -> Verdict:
    """What happened at the first difference."""
    pairs = enumerate(zip(got, right, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(got), len(right)))
    after = got[at : at + _WINDOW]
    places = [place for place in range(len(right)) if right[place : place + _WINDOW] == after]
    if not after or (places and places[-1] > at):
        return Verdict.LOST
    return Verdict.DUPLICATED if places else Verdict.WRONG
