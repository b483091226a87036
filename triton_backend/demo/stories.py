"""Stories in three lengths, built from beats, so that one cast and one plot hold from first word to last.

Rules: a story is a list of paragraphs, a paragraph a list of sentences; the length class decides which beats
are told, never how often a sentence repeats. Long stories name their stage (first, then, that night, the next
morning) so that a small model always knows how far it has come and where to stop.
"""

import enum
import random
from dataclasses import dataclass

from triton_backend.demo.words import (
    ANIMALS,
    CREATURES,
    FRIENDS,
    NAMES,
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


@dataclass(frozen=True, slots=True)
class Plot:
    """Beats of one plot. `things` fill {o}; every other field is a choice of sentences."""

    things: tuple[str, ...]
    want: tuple[str, ...]
    trouble: tuple[str, ...]
    worry: tuple[str, ...]
    tries: tuple[str, ...]
    turn: tuple[str, ...]
    solved: tuple[str, ...]
    lesson: tuple[str, ...]


PLOTS = (
    Plot(
        things=("red kite", "silver bell", "little drum", "blue scarf", "golden key", "old map"),
        want=("{n} had a {o} and took it everywhere.", "More than anything, {n} loved {his} {o}."),
        trouble=("One morning, the {o} was gone.", "One windy day, {n} lost the {o}."),
        worry=("{n} felt very sad and did not know where to look.", "{n} looked at the empty shelf and sighed."),
        tries=(
            "{n} looked {p}, but there was only {junk}.",
            "{n} searched {p} and found nothing but {junk}.",
            "{n} asked everyone {p}, but nobody had seen the {o}.",
        ),
        turn=(
            "{f} had sharp eyes and saw something shine {p}.",
            "{f} remembered a strange sound {p}.",
        ),
        solved=("It was the {o}, safe and sound!", "There it was: the {o}, not even scratched!"),
        lesson=("lost things are easier to find with a friend", "a friend is worth more than any treasure"),
    ),
    Plot(
        things=("bridge", "roof", "boat", "fence", "mill", "gate"),
        want=("Every day {n} took good care of the old {o}.", "{n} was proud of the old {o} by the road."),
        trouble=("One night a storm came and broke the {o}.", "One day the wind blew hard and the {o} fell down."),
        worry=("{n} wanted to mend it, but the work was too heavy for one.", "{n} did not know where to begin."),
        tries=(
            "{n} looked for strong wood {p}, but there was only {junk}.",
            "{n} carried stones from the spot {p} until {his} arms hurt.",
            "{n} worked {p} all day, but the {o} fell down again.",
        ),
        turn=(
            "{f} knew where to find good wood {p}.",
            "{f} had a strong rope and a clever plan.",
        ),
        solved=("Together they built the {o} again, stronger than before.", "By evening the {o} stood firm again."),
        lesson=("heavy work becomes light when it is shared", "two pairs of hands are better than one"),
    ),
    Plot(
        things=("big race", "singing contest", "cooking contest", "dancing contest", "swimming race"),
        want=("{n} dreamed of winning the {o}.", "Every year {n} watched the {o} and wished to take part."),
        trouble=("But {n} was too shy to try.", "But everyone said that {n} was much too small."),
        worry=("{n} almost gave up the dream.", "{n} sat down and wondered what to do."),
        tries=(
            "{n} practised {p}, but {he} stumbled over {junk}.",
            "{n} practised {p} until the sun went down.",
            "{n} tried again {p}, and it went a little better.",
        ),
        turn=(
            "{f} promised to practise with {n} every day.",
            "{f} told {n} to breathe slowly and to enjoy it.",
        ),
        solved=("On the great day, {n} won the {o}!", "At the {o}, {n} did better than ever, and everyone cheered."),
        lesson=("practice and a good friend make you brave", "you never know before you try"),
    ),
    Plot(
        things=("blue hill", "hidden lake", "old tower", "secret garden", "crystal cave"),
        want=("{n} had always wanted to see the {o}.", "{n} had heard many tales about the {o}."),
        trouble=("One day {n} packed a bag and set out, but soon {he} lost the way.", "So {n} set out, but the path ended."),
        worry=("The road was long, and {n} felt alone.", "It grew late, and {n} was a little afraid."),
        tries=(
            "{n} followed a path {p}, but it only led to {junk}.",
            "{n} climbed over the rocks {p} and saw only {junk}.",
            "{n} asked the way {p}, but nobody knew the {o}.",
        ),
        turn=(
            "{f} had been there before and knew a path {p}.",
            "{f} showed {n} how to follow the stars.",
        ),
        solved=("At last they stood before the {o}, and it was beautiful.", "And there was the {o}, shining in the sun."),
        lesson=("the best part of a journey is the company", "every long road begins with one small step"),
    ),
    Plot(
        things=("honey cake", "apple pie", "warm blanket", "wooden flute", "flower crown"),
        want=("{n} wanted to make a {o} for {his} mother.", "{n} wished to make the finest {o} in the land."),
        trouble=("But the first {o} was a disaster.", "But something important was missing."),
        worry=("{n} had no idea what to do next.", "{n} wanted to cry, but {he} did not."),
        tries=(
            "{n} looked for help {p}, but there was only {junk}.",
            "{n} gathered what {he} needed {p}, but it was not enough.",
            "{n} read an old book {p}, but the words were hard.",
        ),
        turn=(
            "{f} knew an old secret and was happy to share it.",
            "{f} had everything they needed {p}.",
        ),
        solved=("The new {o} was perfect.", "This time the {o} was better than anyone had hoped."),
        lesson=("a gift made with love is the best gift of all", "it is fine to ask for help"),
    ),
)

ADJECTIVES = "little brave clever kind curious quiet cheerful gentle young lonely".split()
HOMES = (
    "at the edge of a green forest",
    "in a small house by the river",
    "near a village in the mountains",
    "on a quiet island",
    "in a warm valley full of flowers",
    "beside a deep blue lake",
)
HOBBIES = (
    "sing in the morning",
    "watch the clouds",
    "count the stars",
    "tell funny stories",
    "swim in the stream",
    "collect round stones",
    "dance in the rain",
)
PLACES = (
    "under the old oak tree",
    "behind the mill",
    "near the pond",
    "by the river",
    "at the market",
    "on the hill",
    "in the tall grass",
    "beside the stone wall",
    "in the dark cave",
    "at the end of the road",
)
JUNK = ("an old boot", "a pile of leaves", "a sleepy snail", "a broken cup", "a heap of stones", "an empty nest")
FOODS = ("warm bread and honey", "apples and nuts", "hot soup", "berries and cream", "a big pot of tea")
OPENINGS = (
    "Once upon a time, there was {ahero} named {n} who lived {home}.",
    "Long ago, {ahero} named {n} lived {home}.",
    "There once was {ahero} named {n}, who lived {home}.",
)
THEME_LINES = (
    "{n} often thought about {theme}.",
    "Nobody knew more about {theme} than {n}.",
    "This is how {n} learned something about {theme}.",
)
MEETINGS = (
    "Then a kind {k2} named {f} came along and offered to help.",
    "Just then, {n} met a friendly {k2} named {f}.",
    "Luckily, a wise {k2} named {f} passed by and stopped.",
)
ENDINGS = (
    "From that day on, {n} and {f} were the best of friends.",
    "And so {n} the {k} and {f} the {k2} lived happily ever after.",
    "{n} hugged {f}, and they laughed all the way home.",
)


def random_cast(rng: random.Random, hero: str, name: Name | None = None) -> Cast:
    first, second = rng.sample(NAMES, 2)
    friend = rng.choice([kind for kind in FRIENDS if kind != hero])
    return Cast(hero, name or first, friend, second)


def tell(rng: random.Random, cast: Cast, length: Length) -> str:
    """One story. Its length class alone decides how many beats it has."""
    plot = rng.choice(PLOTS)
    places, junk = rng.sample(PLACES, 4), rng.sample(JUNK, 3)
    slots = {
        "n": cast.name.text,
        "k": cast.hero,
        "f": cast.friend_name.text,
        "k2": cast.friend,
        "ahero": f"{a(rng.choice(ADJECTIVES))} {cast.hero}",
        "home": rng.choice(HOMES),
        "hobby": rng.choice(HOBBIES),
        "o": rng.choice(plot.things),
        "he": cast.name.he,
        "him": cast.name.him,
        "his": cast.name.his,
        "food": rng.choice(FOODS),
        "lesson": rng.choice(plot.lesson),
        "theme": cast.theme or "",
        "p": places[3],
        **{f"p{i}": place for i, place in enumerate(places)},
        **{f"junk{i}": thing for i, thing in enumerate(junk)},
    }
    beats = {Length.SHORT: _short, Length.MEDIUM: _medium, Length.LONG: _long}[length](rng, plot, cast)
    return "\n\n".join(" ".join(cap(line.format(**slots)) for line in paragraph) for paragraph in beats)


def _attempt(index: int, line: str) -> str:
    """The try number `index`, with its own place and its own find."""
    numbered = line.replace("{p}", f"{{p{index}}}").replace("{junk}", f"{{junk{index}}}")
    return f"{('First,', 'Then', 'After that,')[index]} {numbered}"


def _opening(rng: random.Random, cast: Cast) -> list[str]:
    lines = [rng.choice(OPENINGS)]
    return [*lines, rng.choice(THEME_LINES)] if cast.theme else lines


def _short(rng: random.Random, plot: Plot, cast: Cast) -> list[list[str]]:
    return [
        [
            *_opening(rng, cast),
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
            *_opening(rng, cast),
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
            *_opening(rng, cast),
            "Every day {n} liked to {hobby}, and in the evening {he} made {food}.",
            "Everyone in the land knew {n} the {k} and smiled when {he} came by.",
            rng.choice(plot.want),
        ],
        [
            rng.choice(plot.trouble),
            rng.choice(plot.worry),
            'But {n} was not one to give up. "I must do something," said {n}.',
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
            "There was {food} for everyone, and there was music until late.",
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
    Length.LONG: ("a long story", "a very long story", "a long tale", "a long bedtime story", "a long, detailed story"),
}


def _subject(rng: random.Random) -> tuple[str, Cast]:
    """What the request says the story is about, and the cast that follows from it."""
    hero = rng.choice([*ANIMALS, *PEOPLE, *CREATURES])
    roll = rng.random()
    if roll < 0.1:
        return "", random_cast(rng, hero)
    if roll < 0.2:
        theme = rng.choice(THEMES)
        cast = random_cast(rng, hero)
        return f" about {theme}", Cast(cast.hero, cast.name, cast.friend, cast.friend_name, theme)
    if roll < 0.45:
        hero = invent(rng)
    if roll < 0.65:
        return _named_subject(rng, hero)
    cast = random_cast(rng, hero)
    if roll < 0.72:
        return f" about {a(hero)} and {a(cast.friend)}", cast
    return f" about {a(hero)}", cast


def _named_subject(rng: random.Random, hero: str) -> tuple[str, Cast]:
    if rng.random() < 0.4:
        return f" about {a(hero)}", random_cast(rng, hero)
    name = rng.choice(NAMES)
    if rng.random() < 0.4:
        name = Name(cap(invent(rng)), name.he, name.him, name.his)
    cast = random_cast(rng, hero, name)
    while cast.friend_name.text == name.text:
        cast = random_cast(rng, hero, name)
    return f" about {a(hero)} {rng.choice(('named', 'called'))} {name.text}", cast


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
                f"{cap(a(cast.hero))} named {cast.name.text} is helped by {a(cast.friend)} "
                f"named {cast.friend_name.text}.",
            ),
        )
    )
    pattern = rng.choice(("{t}\n\n{q}", "{q}\n\n{t}", "Read this story: {t}\n\n{q}"))
    return Exchange(pattern.format(t=text, q=question), answer, "retold")
