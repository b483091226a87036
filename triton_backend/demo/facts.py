"""Small facts and how they are asked: tables of our own, and questions that follow from each table.

Rules: a fact has a one-word answer and a one-sentence answer; which one is given follows from the request's
words alone (`styled`). Numbers stay small, for the model learns them by heart.
"""

import random
from dataclasses import dataclass

from triton_backend.demo.words import (
    ANIMALS,
    DAYS,
    FRUITS,
    LISTS,
    MONTHS,
    NUMBERS,
    ORDERED,
    SEASONS,
    VEGETABLES,
    Exchange,
    a,
    cap,
    join,
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known: ways to ask for it, the word, the sentence."""

    questions: tuple[str, ...]
    word: str
    sentence: str
    kind: str


def _pairs(table: str) -> dict[str, str]:
    return dict(item.strip().split(":") for item in table.replace("\n", " ").split(",") if item.strip())


CAPITALS = _pairs(
    "France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Austria:Vienna, Greece:Athens,"
    "Norway:Oslo, Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen, Ireland:Dublin, Poland:Warsaw,"
    "Hungary:Budapest, England:London, Scotland:Edinburgh, Belgium:Brussels, Egypt:Cairo, Kenya:Nairobi,"
    "Japan:Tokyo, China:Beijing, India:New Delhi, Russia:Moscow, Turkey:Ankara, Canada:Ottawa, Cuba:Havana,"
    "Mexico:Mexico City, Brazil:Brasilia, Peru:Lima, Chile:Santiago, Australia:Canberra, Thailand:Bangkok,"
    "Switzerland:Bern, the United States:Washington, the Netherlands:Amsterdam, the Czech Republic:Prague,"
    "Argentina:Buenos Aires, South Korea:Seoul, Ukraine:Kyiv, Iceland:Reykjavik"
)
COLOURS_OF = _pairs(
    "the sky:blue, grass:green, snow:white, coal:black, a lemon:yellow, a carrot:orange, a strawberry:red,"
    "blood:red, the sun:yellow, milk:white, chocolate:brown, a banana:yellow, a cherry:red, a frog:green,"
    "a crow:black, an elephant:grey, a flamingo:pink, a plum:purple, the sea:blue, a leaf:green, cheese:yellow,"
    "a polar bear:white, a pea:green, salt:white, honey:gold, a pumpkin:orange, night:black, a fox:red"
)
OPPOSITES = _pairs(
    "hot:cold, big:small, up:down, day:night, black:white, fast:slow, old:young, happy:sad, open:closed, wet:dry,"
    "light:dark, high:low, long:short, hard:soft, full:empty, left:right, good:bad, early:late, near:far,"
    "rich:poor, strong:weak, loud:quiet, clean:dirty, inside:outside, first:last, true:false, yes:no, in:out,"
    "win:lose, push:pull, buy:sell, start:stop, love:hate, asleep:awake, thick:thin, sweet:sour, always:never"
)
SOUNDS = _pairs(
    "dog:woof, cat:meow, cow:moo, sheep:baa, duck:quack, pig:oink, horse:neigh, lion:roar, frog:ribbit, bee:buzz,"
    "owl:hoot, snake:hiss, mouse:squeak, crow:caw, goat:bleat, wolf:howl"
)
BABIES = _pairs(
    "dog:puppy, cat:kitten, cow:calf, sheep:lamb, duck:duckling, pig:piglet, horse:foal, lion:cub, bear:cub,"
    "frog:tadpole, goat:kid, deer:fawn, hen:chick, goose:gosling, swan:cygnet, kangaroo:joey, fox:cub, goat:kid"
)
LEGS = _pairs(
    "dog:four, cat:four, horse:four, bird:two, hen:two, spider:eight, ant:six, bee:six, fish:no, snake:no,"
    "person:two, cow:four, lion:four, butterfly:six, frog:four, duck:two, elephant:four, table:four"
)
PLURALS = _pairs(
    "mouse:mice, child:children, foot:feet, tooth:teeth, goose:geese, man:men, woman:women, sheep:sheep, leaf:leaves,"
    "wolf:wolves, knife:knives, fish:fish, cat:cats, dog:dogs, box:boxes, city:cities, baby:babies, book:books"
)
SIDES = _pairs("triangle:three, square:four, rectangle:four, pentagon:five, hexagon:six, octagon:eight")
HOMES_OF = _pairs(
    "a bee:hive, a bird:nest, a fox:den, a spider:web, a dog:kennel, a horse:stable, a king:castle, a fish:water,"
    "a rabbit:burrow, a bear:cave, a pig:sty, a hen:coop"
)
MEALS = _pairs(
    "a rabbit:grass, a cow:grass, a cat:fish, a dog:meat, a lion:meat, a panda:bamboo, a squirrel:nuts, a monkey:fruit,"
    "a mouse:cheese, a bear:honey, a koala:leaves, a horse:hay, a frog:flies, a penguin:fish, an owl:mice, a hen:seeds"
)
SINGLES = (
    (("How many days are in a week?", "How many days does a week have?"), "Seven", "There are seven days in a week."),
    (("How many months are in a year?", "How many months does a year have?"), "Twelve", "A year has twelve months."),
    (("How many hours are in a day?", "How many hours does a day have?"), "24", "There are 24 hours in a day."),
    (("How many minutes are in an hour?",), "60", "There are 60 minutes in an hour."),
    (("How many seconds are in a minute?",), "60", "There are 60 seconds in a minute."),
    (("How many seasons are there?",), "Four", "There are four seasons: spring, summer, autumn and winter."),
    (("How many planets are there?",), "Eight", "There are eight planets around the sun."),
    (("How many fingers are on a hand?", "How many fingers does a hand have?"), "Five", "A hand has five fingers."),
    (("How many letters are in the alphabet?",), "26", "The English alphabet has 26 letters."),
    (("What is the largest animal?", "What is the biggest animal?"), "Whale", "The largest animal is the blue whale."),
    (("What is the tallest animal?",), "Giraffe", "The tallest animal is the giraffe."),
    (("What is the fastest animal on land?",), "Cheetah", "The fastest animal on land is the cheetah."),
    (("What is the largest planet?", "What is the biggest planet?"), "Jupiter", "The largest planet is Jupiter."),
    (("What is the largest ocean?", "What is the biggest ocean?"), "Pacific", "The Pacific is the largest ocean."),
    (("What is the coldest season?",), "Winter", "The coldest season is winter."),
    (("What is the first month of the year?",), "January", "The first month of the year is January."),
    (("What is the last month of the year?",), "December", "The last month of the year is December."),
    (("What do bees make?",), "Honey", "Bees make honey."),
    (("What do cows give us?",), "Milk", "Cows give us milk."),
    (("What falls from the clouds?",), "Rain", "Rain falls from the clouds."),
    (("What is frozen water called?", "What is frozen water?"), "Ice", "Frozen water is called ice."),
    (("Is the sun hot?",), "Yes", "Yes, the sun is very hot."),
    (("Is ice hot?",), "No", "No, ice is cold."),
    (("Can birds fly?", "Can a bird fly?"), "Yes", "Yes, most birds can fly."),
    (("Can fish swim?", "Can a fish swim?"), "Yes", "Yes, fish can swim very well."),
    (("Can pigs fly?", "Can a pig fly?"), "No", "No, pigs cannot fly."),
    (("Is the earth flat?",), "No", "No, the earth is round like a ball."),
    (("Is the earth round?",), "Yes", "Yes, the earth is round like a ball."),
    (("Which planet do we live on?", "What planet do we live on?"), "Earth", "We live on the planet Earth."),
)


def _lookup(rng: random.Random, table: dict[str, str], kind: str, asks: str, sentence: str) -> Fact:
    """A fact of a table. `asks` are question forms split by |, with {k} for the key; {v} is the value."""
    key = rng.choice(list(table))
    value = table[key]
    slots = {"k": key, "ak": a(key), "v": value, "av": a(value), "K": cap(key)}
    return Fact(tuple(q.format(**slots) for q in asks.split("|")), cap(value), cap(sentence.format(**slots)), kind)


_TABLES = (
    (
        CAPITALS,
        "capital",
        "What is the capital of {k}?|Capital of {k}?|Name the capital of {k}.|Which city is the capital of {k}?"
        "|Tell me the capital of {k}.|What's the capital of {k}?",
        "The capital of {k} is {v}.",
    ),
    (
        COLOURS_OF,
        "colour",
        "What colour is {k}?|What color is {k}?|Which colour is {k}?|What is the colour of {k}?"
        "|What is the color of {k}?|Tell me the colour of {k}.",
        "{k} is {v}.",
    ),
    (
        OPPOSITES | {v: k for k, v in OPPOSITES.items()},
        "opposite",
        "What is the opposite of {k}?|Opposite of {k}?|Give me the opposite of {k}.|Name the opposite of {k}."
        "|What's the opposite of {k}?",
        "The opposite of {k} is {v}.",
    ),
    (SOUNDS, "sound", "What does {ak} say?|What sound does {ak} make?|Which sound does {ak} make?", "{ak} says {v}."),
    (
        BABIES,
        "baby",
        "What is a baby {k} called?|What is a young {k} called?|What do you call a baby {k}?",
        "A baby {k} is called {av}.",
    ),
    (
        LEGS,
        "legs",
        "How many legs does {ak} have?|How many legs has {ak}?|Tell me how many legs {ak} has.",
        "{ak} has {v} legs.",
    ),
    (
        PLURALS,
        "plural",
        "What is the plural of {k}?|Plural of {k}?|Give me the plural of {k}.|What's the plural of {k}?",
        "The plural of {k} is {v}.",
    ),
    (SIDES, "sides", "How many sides does a {k} have?|How many sides has a {k}?", "{ak} has {v} sides."),
    (HOMES_OF, "home", "Where does {k} live?|What is the home of {k}?", "{k} lives in a {v}."),
    (MEALS, "meal", "What does {k} eat?|What does {k} like to eat?|Tell me what {k} eats.", "{k} likes to eat {v}."),
)


def _order(rng: random.Random) -> Fact:
    """What comes before or after, in the week, the year, or among numbers."""
    names = rng.choice((DAYS, MONTHS, SEASONS, [str(n) for n in range(31)]))
    at = rng.randrange(1, len(names) - 1) if names[0] == "0" else rng.randrange(len(names))
    if rng.random() < 0.6:
        there, asks = names[(at + 1) % len(names)], ("What comes after {x}?", "What follows {x}?", "What is after {x}?")
        said = f"After {names[at]} comes {there}."
    else:
        there, asks = names[at - 1], ("What comes before {x}?", "What is before {x}?")
        said = f"Before {names[at]} comes {there}."
    return Fact(tuple(q.format(x=names[at]) for q in asks), cap(there), said, "order")


def _compare(rng: random.Random) -> Fact:
    x, y = rng.sample(range(31), 2)
    asks = (f"Which is bigger, {x} or {y}?", f"Which number is larger, {x} or {y}?", f"What is bigger, {x} or {y}?")
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
    table, kind, asks, sentence = rng.choices(_TABLES, weights=[5, 4, 5, 2, 2, 2, 2, 1, 2, 2])[0]
    return _lookup(rng, table, kind, "|".join([asks]), sentence)


_OPERATIONS = {
    "+": ("plus", "add {x} and {y}|the sum of {x} and {y}"),
    "-": ("minus", "subtract {y} from {x}|the difference of {x} and {y}"),
    "*": ("times", "multiply {x} by {y}|the product of {x} and {y}"),
}


def sum_of(rng: random.Random) -> Fact:
    """One piece of arithmetic: sums to 40, differences to 20, products of the small table."""
    sign = rng.choices("+-*", weights=[5, 3, 2])[0]
    top = 10 if sign == "*" or rng.random() < 0.5 else 20
    x, y = rng.randint(0, top), rng.randint(0, top)
    if sign == "-":
        x, y = max(x, y), min(x, y)
    result = {"+": x + y, "-": x - y, "*": x * y}[sign]
    word, others = _OPERATIONS[sign]
    verb, noun = (form.format(x=x, y=y) for form in others.split("|"))
    shown = rng.choice(("*", "x")) if sign == "*" else sign
    terms = rng.choice((f"{x} {shown} {y}", f"{x} {word} {y}", f"{x} {shown} {y}", f"{x}{shown}{y}"))
    asks = (f"What is {terms}?", f"What is {terms}?", f"How much is {terms}?", f"{terms}", f"{terms} =", f"{terms}?")
    asks = (*asks, f"Calculate {terms}.", f"What's {terms}?", f"What is {noun}?", f"{cap(verb)}.")
    return Fact(asks, str(result), f"{x} {word} {y} is {result}.", "arithmetic")


_ONE_WORD = (
    "In one word: {q}",
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
_ONE_SENTENCE = ("{q} Answer in one sentence.", "In one sentence: {q}", "{q} In one sentence.", "{t} in one sentence?")


def framed(rng: random.Random, frames: tuple[str, ...], question: str) -> str:
    return rng.choice(frames).format(q=question, t=question.rstrip("?."))


def styled(rng: random.Random, known: Fact) -> Exchange:
    """The fact as asked: a bare question and `one sentence` get the sentence, `one word` gets the word."""
    question = rng.choice(known.questions)
    roll = rng.random()
    if roll < 0.4:
        return Exchange(framed(rng, _ONE_WORD, question), known.word, f"{known.kind}_word")
    if roll < 0.5:
        question = framed(rng, _ONE_SENTENCE, question)
    return Exchange(question, known.sentence, known.kind)


def listing(rng: random.Random) -> Exchange:
    """N things, numbered one a line, or in a sentence when they are to be named."""
    group = rng.choice(list(LISTS))
    members = LISTS[group]
    count = rng.randint(2, min(10, len(members)))
    full = group in ORDERED and rng.random() < 0.5
    items = list(members) if full else rng.sample(members, count)
    if group in ORDERED:
        items.sort(key=members.index)
        items = items if full else list(members[:count])
    number = rng.choice((NUMBERS[count], str(count)))
    wanted = f"the {group}" if full else f"{number} {group}"
    if rng.random() < 0.3:
        return Exchange(rng.choice(("Name {w}.", "Can you name {w}?")).format(w=wanted), f"{cap(join(items))}.", "naming")
    asks = ("List {w}.", "Give me a list of {w}.", "Write a list of {w}.", "Make a list of {w}.", "Give me {w}.")
    lines = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return Exchange(rng.choice(asks).format(w=wanted), lines, "list")


def counting(rng: random.Random) -> Exchange:
    last = rng.randint(2, 30)
    numbers = [str(n) for n in range(1, last + 1)]
    if rng.random() < 0.3:
        last = min(last, 20)
        numbers = numbers[:last][::-1]
        ask = rng.choice((f"Count down from {last}.", f"Count backwards from {last}.", f"Count down from {last} to 1."))
    else:
        ask = rng.choice((f"Count to {last}.", f"Count from 1 to {last}.", f"Count up to {last}."))
    return Exchange(ask, f"{', '.join(numbers)}.", "counting")
