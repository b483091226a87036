"""Words that fill the slots of the demo corpus, and the few grammar rules they need.

Everything here is a constant or a function of its arguments; randomness is always passed in.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, its answer, and the kind of task: what a report or a test groups by."""

    prompt: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Name:
    """A character's name with the pronouns that must follow it through a story."""

    text: str
    he: str
    him: str
    his: str


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = words(
    "fox bear rabbit owl mouse wolf deer cat dog horse duck frog hedgehog squirrel badger otter tiger lion "
    "elephant monkey penguin turtle whale goat sheep cow pig hen goose swan crow parrot snail spider bee ant "
    "butterfly lizard camel zebra giraffe panda koala seal dolphin fish"
)
PEOPLE = words(
    "girl boy farmer baker king queen prince princess sailor knight wizard teacher painter doctor gardener "
    "fisherman shepherd miller tailor cook pilot astronaut pirate clown"
)
CREATURES = words("dragon robot giant unicorn ghost fairy troll mermaid dwarf elf snowman scarecrow toy train")
OTHERS = (
    *words(
        "platypus kangaroo crocodile snake rat hamster pony donkey eagle dinosaur shark octopus crab "
        "jellyfish moose raccoon gorilla hippo leopard cheetah peacock chicken puppy kitten worm bat "
        "beaver llama sloth flamingo teapot clock lamp chair table book pencil shoe hat umbrella car "
        "bus truck bicycle boat ship plane rocket computer phone camera piano guitar drum cloud star "
        "tree flower mountain river castle house lighthouse bridge toaster spoon potato cake cookie "
        "ball balloon kite doll witch vampire monster alien ninja superhero detective student soldier "
        "nurse mechanic programmer scientist chef grandmother grandfather brother sister mother "
        "father baby neighbour postman librarian cowboy singer dancer hunter thief butler server "
        "queue "
    ),
    "vacuum cleaner",
    "traffic light",
    "teddy bear",
    "polar bear",
    "washing machine",
    "fire engine",
)
FRIENDS = words("fox bear rabbit owl mouse deer duck frog hedgehog squirrel badger otter crow turtle goat")
FRUITS = words("apple pear plum banana orange cherry grape lemon peach mango melon fig kiwi apricot")
VEGETABLES = words("carrot potato onion pea bean cabbage leek pumpkin spinach tomato radish turnip")
COLOURS = words("red blue green yellow orange purple brown black white pink grey gold")
CITIES = words("London Paris Rome Berlin Madrid Tokyo Lisbon Vienna Athens Oslo Dublin Cairo Prague Warsaw")
TOOLS = words("hammer saw spade rake axe drill brush knife ladder needle broom shovel")
CLOTHES = words("hat coat scarf shirt sock shoe glove belt dress sweater jacket boot")
DRINKS = words("water milk tea coffee juice lemonade cocoa soup")
FLOWERS = words("rose tulip daisy lily poppy violet sunflower orchid daffodil lavender")
TREES = words("oak pine birch maple willow ash elm beech cedar fir")
SPORTS = words("football tennis swimming running cycling rowing skiing chess sailing climbing")
INSTRUMENTS = words("piano violin flute drum guitar trumpet harp cello clarinet organ")
PLANETS = words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = words("spring summer autumn winter")
THEMES = (
    "the sea",
    "the moon",
    "the rain",
    "the snow",
    "the stars",
    "the wind",
    "friendship",
    "kindness",
    "courage",
    "winter",
    "a lost key",
    "a magic lamp",
    "a small boat",
    "the forest",
    "music",
    "a rainy day",
    "the desert",
    "hope",
    "a birthday",
    "the night",
)
LISTS = {
    "animals": ANIMALS,
    "fruits": FRUITS,
    "vegetables": VEGETABLES,
    "colours": COLOURS,
    "colors": COLOURS,
    "cities": CITIES,
    "tools": TOOLS,
    "pieces of clothing": CLOTHES,
    "drinks": DRINKS,
    "flowers": FLOWERS,
    "trees": TREES,
    "sports": SPORTS,
    "musical instruments": INSTRUMENTS,
    "planets": PLANETS,
    "days of the week": DAYS,
    "months": MONTHS,
    "seasons": SEASONS,
    "jobs": PEOPLE[2:],
}
ORDERED = frozenset({"planets", "days of the week", "months", "seasons"})
NUMBERS = words("zero one two three four five six seven eight nine ten eleven twelve")


def _names(he: str, she: str) -> tuple[Name, ...]:
    males = tuple(Name(name, "he", "him", "his") for name in words(he))
    return males + tuple(Name(name, "she", "her", "her") for name in words(she))


# Heroes and their friends share no name, so that even a forgetful model cannot mix them up.
NAMES = _names("Pip Tom Max Felix Leo Finn Sam Ben Jack Toby", "Luna Mia Ruby Ella Nora Daisy Lily Anna Emma Lucy")
FRIEND_NAMES = _names("Oscar Hugo Bruno Otto Theo Noah Emil", "Rosa Ivy Clara Molly Zoe Sofia Gina Pearl")
GIVEN_NAMES = NAMES + _names(
    "Peter Gus Paul John James Robert David Mark Bob Charlie Frank George Harry Mike Nick Simon Thomas Victor "
    "Fred Henry Kevin Liam Oliver Steve Will Daniel Alex Chris Martin Rex",
    "Maria Mary Linda Sarah Lisa Karen Alice Eve Jane Kate Laura Olivia Rachel Wendy Amy Bella Chloe Elsa "
    "Grace Julia Martha Nina Poppy Rose Tina Vera Susan Helen Sally Betty",
)

_SYLLABLES = words(
    "ba be bo da di do fa fi ga go ka ki ko la le li lo ma mi mo na ni no pa pe po ra ri ro sa se so ta ti "
    "to va vi zo zu plo tri gru ster wim dor fen lu mar quo xi yo"
)
_ENDINGS = words("n r l x sh ck t ng m rd")


def invent(rng: random.Random) -> str:
    """A word nobody has seen. It teaches the model to copy from the request instead of from memory."""
    stem = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 2)))
    return stem + rng.choice(_ENDINGS)


def a(noun: str) -> str:
    """The noun with its article."""
    vowel = noun[0] in "aeiou" and not noun.startswith("uni")
    return f"{'an' if vowel else 'a'} {noun}"


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]
