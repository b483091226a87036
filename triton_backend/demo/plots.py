"""Plots and phrases of the stories: the sentences that `stories` puts together.

`{n}` is the hero's name and `{k}` its kind, `{f}` and `{k2}` the friend's, `{o}` the thing of the plot,
`{p}` a place.
"""

from dataclasses import dataclass

from triton_backend.demo.words import words


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
        want=("{n} had {ao} and took it everywhere.", "More than anything, {n} loved {his} {o}."),
        trouble=("One morning, the {o} was gone.", "One windy day, {n} lost the {o}."),
        worry=(
            "{n} felt very sad and did not know where to look.",
            "{n} looked at the empty shelf and sighed.",
        ),
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
        trouble=(
            "One night a storm came and broke the {o}.",
            "One day the wind blew hard and the {o} fell down.",
        ),
        worry=(
            "{n} wanted to mend it, but the work was too heavy for one.",
            "{n} did not know where to begin.",
        ),
        tries=(
            "{n} looked for strong wood {p}, but there was only {junk}.",
            "{n} carried stones from the spot {p} until {his} arms hurt.",
            "{n} worked {p} all day, but the {o} fell down again.",
        ),
        turn=(
            "{f} knew where to find good wood {p}.",
            "{f} had a strong rope and a clever plan.",
        ),
        solved=(
            "Together they built the {o} again, stronger than before.",
            "By evening the {o} stood firm again.",
        ),
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
        solved=(
            "On the great day, {n} won the {o}!",
            "At the {o}, {n} did better than ever, and everyone cheered.",
        ),
        lesson=("practice and a good friend make you brave", "you never know before you try"),
    ),
    Plot(
        things=("blue hill", "hidden lake", "old tower", "secret garden", "crystal cave"),
        want=("{n} had always wanted to see the {o}.", "{n} had heard many tales about the {o}."),
        trouble=(
            "One day {n} packed a bag and set out, but soon {he} lost the way.",
            "So {n} set out, but the path ended.",
        ),
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
        solved=(
            "At last they stood before the {o}, and it was beautiful.",
            "And there was the {o}, shining in the sun.",
        ),
        lesson=("the best part of a journey is the company", "every long road begins with one small step"),
    ),
    Plot(
        things=("honey cake", "apple pie", "warm blanket", "wooden flute", "flower crown"),
        want=("{n} wanted to make {ao} for {his} mother.", "{n} wished to make the finest {o} in the land."),
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

ADJECTIVES = words("little brave clever kind curious quiet cheerful gentle young lonely")
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
JUNK = (
    "an old boot",
    "a pile of leaves",
    "a sleepy snail",
    "a broken cup",
    "a heap of stones",
    "an empty nest",
)
FOODS = ("warm bread and honey", "apples and nuts", "hot soup", "berries and cream", "pancakes and jam")
OPENINGS = {
    "short": (
        "There once was {ahero} named {n}, who lived {home}.",
        "There once lived {ahero} named {n} {home}.",
    ),
    "medium": (
        "Once upon a time, there was {ahero} named {n} who lived {home}.",
        "Once upon a time, {ahero} named {n} lived {home}.",
    ),
    "long": (
        "Long, long ago, {ahero} named {n} lived {home}.",
        "Long, long ago, there was {ahero} named {n} who lived {home}.",
    ),
}
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
