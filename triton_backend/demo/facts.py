"""Small facts and sums, and how they are asked.

Rules: a fact has a one-word answer and a one-sentence answer; which one is given follows from the request's
words alone (`styled`). Numbers stay small, for the model learns them by heart.
"""

import random
from dataclasses import dataclass

from triton_backend.demo.tables import SINGLES, TABLES
from triton_backend.demo.words import ANIMALS, DAYS, FRUITS, MONTHS, SEASONS, VEGETABLES, Exchange, a, cap


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known: ways to ask for it, the word, the sentence."""

    questions: tuple[str, ...]
    word: str
    sentence: str
    kind: str


def _lookup(rng: random.Random) -> Fact:
    table = rng.choices(TABLES, weights=[t.weight for t in TABLES])[0]
    key = rng.choice(list(table.entries))
    value = table.entries[key]
    slots = {"k": key, "ak": a(key), "v": value, "av": a(value)}
    asks = tuple(question.format(**slots) for question in table.questions)
    return Fact(asks, cap(value), cap(table.sentence.format(**slots)), table.kind)


_AFTER = ("What comes after {x}?", "What follows {x}?", "What is after {x}?")
_BEFORE = ("What comes before {x}?", "What is before {x}?")


def _order(rng: random.Random) -> Fact:
    """What comes before or after, in the week, the year, or among numbers."""
    names = rng.choice((DAYS, MONTHS, SEASONS, tuple(str(n) for n in range(31))))
    at = rng.randrange(1, len(names) - 1) if names[0] == "0" else rng.randrange(len(names))
    after = rng.random() < 0.6
    there = names[(at + 1) % len(names)] if after else names[at - 1]
    asks = tuple(question.format(x=names[at]) for question in (_AFTER if after else _BEFORE))
    said = f"{'After' if after else 'Before'} {names[at]} comes {there}."
    return Fact(asks, cap(there), said, "order")


def _compare(rng: random.Random) -> Fact:
    x, y = rng.sample(range(31), 2)
    asks = (
        f"Which is bigger, {x} or {y}?",
        f"Which number is larger, {x} or {y}?",
        f"What is bigger, {x} or {y}?",
    )
    return Fact(asks, str(max(x, y)), f"{max(x, y)} is bigger than {min(x, y)}.", "compare")


def _belongs(rng: random.Random) -> Fact:
    group, members = rng.choice((("an animal", ANIMALS), ("a fruit", FRUITS), ("a vegetable", VEGETABLES)))
    if rng.random() < 0.5:
        thing = rng.choice(members)
        return Fact((f"Is {a(thing)} {group}?",), "Yes", f"Yes, {a(thing)} is {group}.", "belongs")
    thing = rng.choice([x for x in (*ANIMALS, *FRUITS, *VEGETABLES) if x not in members])
    return Fact((f"Is {a(thing)} {group}?",), "No", f"No, {a(thing)} is not {group}.", "belongs")


def fact(rng: random.Random) -> Fact:
    roll = rng.random()
    if roll < 0.16:
        asks, word, sentence = rng.choice(SINGLES)
        return Fact(asks, word, sentence, "single")
    if roll < 0.26:
        return _order(rng)
    if roll < 0.31:
        return _compare(rng)
    if roll < 0.37:
        return _belongs(rng)
    return _lookup(rng)


_OPERATIONS = {
    "+": ("plus", "add {x} and {y}|the sum of {x} and {y}"),
    "-": ("minus", "subtract {y} from {x}|the difference of {x} and {y}"),
    "*": ("times", "multiply {x} by {y}|the product of {x} and {y}"),
    "/": ("divided by", "divide {x} by {y}|the quotient of {x} and {y}"),
}


def _operands(rng: random.Random, sign: str) -> tuple[int, int, int]:
    """Two numbers and the result: sums and differences up to 20, the small table and its reverse."""
    if sign in "*/":
        x, y = rng.randint(0, 10), rng.randint(0, 10)
        y = max(y, 1) if sign == "/" else y
        return (x * y, y, x) if sign == "/" else (x, y, x * y)
    x, y = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.25:
        whole = rng.randint(10, 20)
        part = rng.randint(0, whole)
        x, y = (part, whole - part) if sign == "+" else (whole, part)
    if sign == "-":
        x, y = max(x, y), min(x, y)
    return x, y, x + y if sign == "+" else x - y


def sum_of(rng: random.Random) -> Fact:
    """One piece of arithmetic."""
    sign = rng.choices("+-*/", weights=[9, 7, 4, 4])[0]
    x, y, result = _operands(rng, sign)
    word, others = _OPERATIONS[sign]
    verb, noun = (form.format(x=x, y=y) for form in others.split("|"))
    shown = rng.choice(("*", "x")) if sign == "*" else sign
    terms = rng.choice((f"{x} {shown} {y}", f"{x} {word} {y}", f"{x} {shown} {y}", f"{x}{shown}{y}"))
    asks = tuple(ask.format(t=terms) for ask in _SUM_QUESTIONS)
    return Fact((*asks, f"What is {noun}?", f"{cap(verb)}."), str(result), f"{x} {word} {y} is {result}.", "sum")


_SUM_QUESTIONS = (
    "What is {t}?",
    "What is {t}?",
    "How much is {t}?",
    "{t}",
    "{t} =",
    "{t}?",
    "Calculate {t}.",
    "What's {t}?",
)
_ONE_WORD = (
    "In one word: {q}",
    "In one word, {l}",
    "{q} Answer in one word.",
    "{q} One word only.",
    "{q} Just one word, please.",
    "{q} In one word.",
    "Answer in one word: {q}",
    "{q} Reply with one word.",
    "{q} Use a single word.",
    "Answer with one word. {q}",
    "{t} in one word?",
    "{t}, in one word?",
    "{t}? (one word)",
)
_ONE_SENTENCE = (
    "{q} Answer in one sentence.",
    "In one sentence: {q}",
    "{q} In one sentence.",
    "{t} in one sentence?",
)


def framed(rng: random.Random, frames: tuple[str, ...], question: str) -> str:
    lower = question[0].lower() + question[1:]
    return rng.choice(frames).format(q=question, t=question.rstrip("?."), l=lower)


def styled(rng: random.Random, known: Fact) -> Exchange:
    """The fact as asked: a bare question and `one sentence` get the sentence, `one word` gets the word."""
    question = rng.choice(known.questions)
    roll = rng.random()
    if roll < 0.4:
        return Exchange(framed(rng, _ONE_WORD, question), known.word, f"{known.kind}_word")
    if roll < 0.5:
        question = framed(rng, _ONE_SENTENCE, question)
    return Exchange(question, known.sentence, known.kind)
