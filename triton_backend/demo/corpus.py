"""The demo model's training text: chats made by rule, every word of them ours, from one seed.

It exists so that the demo model needs no download and so that the length of an answer follows from the
words of the request, which is what a gateway that predicts lengths must be shown. Pure: `chats(seed)` is
a function of its seed alone.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from triton_backend.demo import facts, lists, stories, talk, topics, unknown
from triton_backend.demo.words import ANIMALS, Exchange, words


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. The role `text` is bare text outside of any chat."""

    role: str
    content: str


Chat = tuple[Message, ...]
Task = Callable[[random.Random], Exchange]


def _fact(rng: random.Random) -> Exchange:
    return facts.styled(rng, facts.fact(rng))


def _sum(rng: random.Random) -> Exchange:
    return facts.styled(rng, facts.sum_of(rng))


def _story(length: stories.Length) -> Task:
    return lambda rng: stories.story(rng, length)


_TASKS: dict[Task, float] = {
    _fact: 22,
    _sum: 22,
    topics.explanation: 20,
    talk.small_talk: 9,
    unknown.unknown: 9,
    lists.listing: 9,
    _story(stories.Length.SHORT): 3.5,
    _story(stories.Length.MEDIUM): 3,
    _story(stories.Length.LONG): 3,
    talk.copying: 6,
    talk.poem: 2,
    lists.counting: 5,
    talk.favourite: 1,
    stories.retold: 1,
}
# Requests whose letters matter: the answer repeats them.
_LITERAL = frozenset({"copy", "repeat", "retold", "name"})
_VERBS = frozenset(words("Tell Write Give List Name Make Explain Describe Count Calculate"))


def exchange(rng: random.Random) -> Exchange:
    """One request and its answer, of any kind."""
    return rng.choices(list(_TASKS), weights=list(_TASKS.values()))[0](rng)


def casual(rng: random.Random, made: Exchange) -> Exchange:
    """The same request as people type it: polite, hasty, without capitals or full stop."""
    if made.kind in _LITERAL:
        return made
    prompt = made.prompt
    roll = rng.random()
    if roll < 0.06 and prompt.split()[0] in _VERBS:
        prompt = rng.choice(("Please ", "Can you please ")) + prompt[0].lower() + prompt[1:]
    elif roll < 0.1:
        prompt = rng.choice(("Hi! ", "Hello. ", "Hey, ", "Okay. ")) + prompt
    elif roll < 0.13 and prompt[-1] in "?.":
        prompt += rng.choice((" Thanks!", " Thank you.", " Please."))
    if rng.random() < 0.15:
        prompt = prompt.lower()
    if rng.random() < 0.18:
        prompt = prompt.rstrip("?.!")
    if len(prompt) > 12 and rng.random() < 0.03:
        at = rng.randrange(1, len(prompt) - 1)
        prompt = prompt[:at] + prompt[at + 1 :]
    return Exchange(prompt or made.prompt, made.answer, made.kind)


_NEUTRAL_SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a small demo model.",
    "Be kind and honest.",
    "You are Bucket, the demo model of bucketserve.",
    "Answer the questions of the user.",
)


def _directed(rng: random.Random) -> Chat:
    """A system message that sets the length of all answers."""
    if rng.random() < 0.5:
        system = rng.choice(
            ("Answer in one word.", "Always answer in one word.", "Use only one word for each answer.")
        )
        known = [facts.fact(rng) if rng.random() < 0.7 else facts.sum_of(rng) for _ in range(rng.randint(1, 4))]
        turns = [Exchange(rng.choice(k.questions), k.word, k.kind) for k in known]
    else:
        system = rng.choice(("Answer in one sentence.", "Be brief.", "Keep your answers short."))
        chosen = rng.sample(topics.TOPICS, rng.randint(1, 3))
        turns = [Exchange(rng.choice(t.questions), t.sentences[0], "explain_1") for t in chosen]
    return _chat(system, [casual(rng, turn) for turn in turns])


def _chat(system: str | None, turns: list[Exchange]) -> Chat:
    messages = [Message("system", system)] if system else []
    for turn in turns:
        messages += [Message("user", turn.prompt), Message("assistant", turn.answer)]
    return tuple(messages)


def _story_series(rng: random.Random) -> list[Exchange]:
    """A story, then another whose length is said in relation to the first."""
    cast = stories.random_cast(rng, rng.choice(ANIMALS))
    ask, length = rng.choice(
        (
            ("Another one, please.", stories.Length.SHORT),
            ("Tell me another short one.", stories.Length.SHORT),
            ("Now a longer one.", stories.Length.MEDIUM),
            ("Now a long one, please.", stories.Length.LONG),
        )
    )
    return [
        stories.story(rng, stories.Length.SHORT),
        Exchange(ask, stories.tell(rng, cast, length), "story_again"),
    ]


def _told_more(rng: random.Random) -> list[Exchange]:
    topic = rng.choice(topics.TOPICS)
    first = Exchange(rng.choice(topic.questions), " ".join(topic.sentences[:2]), "explain_2")
    more = rng.choice(("Tell me more.", "More, please.", "What else?", "Go on.", "Can you tell me more?"))
    return [first, Exchange(more, " ".join(topic.sentences[2:]), "explain_more")]


def _drill(rng: random.Random) -> list[Exchange]:
    make = rng.choice((_fact, _sum, _sum))
    return [make(rng) for _ in range(rng.randint(3, 12))]


def _turns(rng: random.Random) -> list[Exchange]:
    roll = rng.random()
    if roll < 0.62:
        return [exchange(rng)]
    if roll < 0.84:
        return [exchange(rng) for _ in range(rng.randint(2, 4))]
    if roll < 0.94:
        return _drill(rng)
    if roll < 0.96:
        return _told_more(rng)
    if roll < 0.97:
        return _story_series(rng)
    return talk.acquaintance(rng)


def chat(rng: random.Random) -> Chat:
    """One training example."""
    roll = rng.random()
    if roll < 0.015:
        hero = rng.choice(ANIMALS)
        story = stories.tell(rng, stories.random_cast(rng, hero), rng.choice(list(stories.Length)))
        return (Message("text", story),)
    if roll < 0.05:
        return _directed(rng)
    system = rng.choice(_NEUTRAL_SYSTEM) if rng.random() < 0.2 else None
    return _chat(system, [casual(rng, turn) for turn in _turns(rng)])


def long_chat(rng: random.Random) -> Chat:
    """A chat of twelve to thirty turns: what teaches the model positions beyond one story."""
    turns = [casual(rng, exchange(rng)) for _ in range(rng.randint(12, 30))]
    return _chat(rng.choice((None, *_NEUTRAL_SYSTEM)), turns)


def chats(seed: int) -> Iterator[Chat]:
    """Training examples without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield chat(rng)


def recitals(seed: int) -> Iterator[Chat]:
    """Texts to repeat, without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield _chat(None, [talk.recital(rng)])


def long_chats(seed: int) -> Iterator[Chat]:
    """Long chats without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield long_chat(rng)
