"""Stories in three lengths, built from beats, so that one cast and one plot hold from first word to last.

Rules: a story is a list of paragraphs, a paragraph a list of sentences; the length class decides which beats
are told, never how often a sentence repeats. Long stories name their stage (first, then, that night, the next
morning) so that a small model always knows how far it has come and where to stop.
"""

import enum
import random
from dataclasses import dataclass, replace

from triton_backend.demo.plots import (
    ADJECTIVES,
    ENDINGS,
    FOODS,
    HOBBIES,
    HOMES,
    JUNK,
    MEETINGS,
    OPENINGS,
    PLACES,
    PLOTS,
    THEME_LINES,
    Plot,
)
from triton_backend.demo.words import (
    ANIMALS,
    CREATURES,
    FRIEND_NAMES,
    FRIENDS,
    GIVEN_NAMES,
    NAMES,
    OTHERS,
    PEOPLE,
    THEMES,
    Exchange,
    Name,
    a,
    cap,
    invent,
)


class Length(enum.Enum):
    """Length classes of a story, by what the request says."""

    SHORT = "short"
    MEDIUM = "medium"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what a story is about; fixed before the first sentence."""

    hero: str
    name: Name
    friend: str
    friend_name: Name
    theme: str | None = None
    adjective: str | None = None


def random_cast(rng: random.Random, hero: str, name: Name | None = None) -> Cast:
    friend = rng.choice([kind for kind in FRIENDS if kind != hero])
    friend_name = FRIEND_NAMES[FRIENDS.index(friend)]
    return Cast(hero, name or rng.choice(NAMES), friend, friend_name)


def tell(rng: random.Random, cast: Cast, length: Length) -> str:
    """One story. Its length class alone decides how many beats it has."""
    plot = rng.choice(PLOTS)
    places, junk = rng.sample(PLACES, 4), rng.sample(JUNK, 3)
    thing = rng.choice(plot.things)
    slots = {
        "n": cast.name.text,
        "k": cast.hero,
        "f": cast.friend_name.text,
        "k2": cast.friend,
        "ahero": f"{a(cast.adjective or rng.choice(ADJECTIVES))} {cast.hero}",
        "home": rng.choice(HOMES),
        "hobby": rng.choice(HOBBIES),
        "o": thing,
        "ao": a(thing),
        "he": cast.name.he,
        "him": cast.name.him,
        "his": cast.name.his,
        "food": rng.choice(FOODS),
        "lesson": rng.choice(plot.lesson),
        "theme": cast.theme or "",
        "p": places[3],
        **{f"p{i}": place for i, place in enumerate(places)},
        **{f"junk{i}": find for i, find in enumerate(junk)},
    }
    beats = {Length.SHORT: _short, Length.MEDIUM: _medium, Length.LONG: _long}[length](rng, plot, cast)
    return "\n\n".join(" ".join(cap(line.format(**slots)) for line in paragraph) for paragraph in beats)


def _attempt(index: int, line: str) -> str:
    """The try number `index`, with its own place and its own find."""
    numbered = line.replace("{p}", f"{{p{index}}}").replace("{junk}", f"{{junk{index}}}")
    return f"{('First,', 'Then', 'After that,')[index]} {numbered}"


def _opening(rng: random.Random, cast: Cast, length: Length) -> list[str]:
    """The first words tell the length class: the model settles it at once, not fifty tokens later."""
    lines = [rng.choice(OPENINGS[length.value])]
    return [*lines, rng.choice(THEME_LINES)] if cast.theme else lines


def _short(rng: random.Random, plot: Plot, cast: Cast) -> list[list[str]]:
    return [
        [
            *_opening(rng, cast, Length.SHORT),
            rng.choice(plot.want),
            rng.choice(plot.trouble),
            rng.choice(MEETINGS),
            rng.choice(plot.solved),
            rng.choice(ENDINGS),
        ]
    ]


def _medium(rng: random.Random, plot: Plot, cast: Cast) -> list[list[str]]:
    return [
        [
            *_opening(rng, cast, Length.MEDIUM),
            "Every day {n} liked to {hobby}.",
            rng.choice(plot.want),
            rng.choice(plot.trouble),
            rng.choice(plot.worry),
        ],
        [
            _attempt(0, rng.choice(plot.tries)),
            rng.choice(MEETINGS),
            rng.choice(plot.turn),
            rng.choice(plot.solved),
            rng.choice(ENDINGS),
        ],
    ]


def _long(rng: random.Random, plot: Plot, cast: Cast) -> list[list[str]]:
    tries = [_attempt(i, line) for i, line in enumerate(rng.sample(plot.tries, 3))]
    return [
        [
            *_opening(rng, cast, Length.LONG),
            "Every day {n} liked to {hobby}, and in the evening {he} made {food}.",
            "Everyone in the land knew {n} the {k} and smiled when {he} came by.",
            rng.choice(plot.want),
        ],
        [
            rng.choice(plot.trouble),
            rng.choice(plot.worry),
            'Still, {n} was not one to give up. "I must do something," said {n}.',
        ],
        [
            tries[0],
            "{n} rested for a moment and drank some cold water.",
            tries[1],
            "The sun was hot, and {n} was getting tired.",
            tries[2],
        ],
        [
            "That night, {n} sat under the stars and thought about the {o}.",
            rng.choice(MEETINGS),
            '"Why are you so sad?" asked {f}. {n} told {f} everything about the {o}.',
            '"Do not worry," said {f}. "Tomorrow we will do it together."',
        ],
        [
            "The next morning, {n} and {f} got up early and ate {food}.",
            rng.choice(plot.turn),
            "They walked and talked, and the hours passed quickly.",
            rng.choice(plot.solved),
            "{n} jumped for joy, and {f} clapped and laughed.",
        ],
        [
            "In the evening, they made a fire and invited all their neighbours.",
            "There was plenty of {food} for everyone, and music until late.",
            '"Now I know," said {n}, "that {lesson}."',
            rng.choice(ENDINGS),
        ],
    ]


_REQUESTS = (
    "Tell me {s}.",
    "Write {s}.",
    "Write me {s}.",
    "Can you tell me {s}?",
    "I would like to hear {s}.",
    "Please write {s}.",
    "Give me {s}.",
    "Could you write {s}, please?",
    "Make up {s}.",
)
_WORDS = {
    Length.SHORT: ("a short story", "a very short story", "a brief story", "a little story", "a short tale"),
    Length.MEDIUM: ("a story", "a story", "a tale", "a bedtime story", "a nice story"),
    Length.LONG: (
        "a long story",
        "a very long story",
        "a long tale",
        "a long bedtime story",
        "a long, detailed story",
    ),
}


def _subject(rng: random.Random) -> tuple[str, Cast]:
    """What the request says the story is about, and the cast that follows from it."""
    hero = rng.choice([*ANIMALS, *PEOPLE, *CREATURES]) if rng.random() < 0.6 else rng.choice(OTHERS)
    roll = rng.random()
    if rng.random() < 0.06:
        hero = invent(rng)
    cast = random_cast(rng, hero)
    if roll < 0.1:
        return "", random_cast(rng, rng.choice(ANIMALS))
    if roll < 0.22:
        theme = rng.choice(THEMES)
        return f" about {theme}", replace(cast, theme=theme)
    if roll < 0.45:
        cast = random_cast(rng, hero, rng.choice(GIVEN_NAMES))
        return f" about {a(hero)} {rng.choice(('named', 'called'))} {cast.name.text}", cast
    if roll < 0.55:
        return f" about {a(hero)} and {a(cast.friend)}", cast
    if roll < 0.7:
        adjective = rng.choice(ADJECTIVES)
        return f" about {a(f'{adjective} {hero}')}", replace(cast, adjective=adjective)
    return f" about {a(hero)}", cast


def story(rng: random.Random, length: Length) -> Exchange:
    about, cast = _subject(rng)
    wanted = rng.choice(_WORDS[length]) + about
    prompt = rng.choice(_REQUESTS).format(s=wanted)
    return Exchange(prompt, tell(rng, cast, length), f"story_{length.value}")


def retold(rng: random.Random) -> Exchange:
    """A long request with a short answer: the text of a story and a question about it."""
    cast = random_cast(rng, rng.choice([*ANIMALS, *PEOPLE, *CREATURES]))
    text = tell(rng, cast, rng.choice(list(Length)))
    question, answer = rng.choice(
        (
            ("Who is this story about?", f"It is about {a(cast.hero)} named {cast.name.text}."),
            ("What is the name of the hero?", f"The hero is named {cast.name.text}."),
            ("Who helps the hero?", f"{cap(a(cast.friend))} named {cast.friend_name.text} helps the hero."),
            (
                "Sum it up in one sentence.",
                f"{cap(a(cast.hero))} named {cast.name.text} gets help from {cast.friend_name.text}.",
            ),
        )
    )
    pattern = rng.choice(("{t}\n\n{q}", "{q}\n\n{t}", "Read this story: {t}\n\n{q}"))
    return Exchange(pattern.format(t=text, q=question), answer, "retold")
