"""What the demo model knows: tables of our own, and how each is asked for and told.

`{k}` is the key and `{ak}` the key with its article, `{v}` and `{av}` the same of the value.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Facts of one kind."""

    entries: dict[str, str]
    kind: str
    weight: int
    """How often it is asked for, next to the others."""
    questions: tuple[str, ...]
    sentence: str


def _pairs(table: str) -> dict[str, str]:
    """`key:value` by commas."""
    entries = {}
    for item in " ".join(table.split()).split(", "):
        key, value = item.split(":")
        entries[key] = value
    return entries


CAPITALS = _pairs(
    """
    France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Austria:Vienna,
    Greece:Athens, Norway:Oslo, Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen,
    Ireland:Dublin, Poland:Warsaw, Hungary:Budapest, England:London, Scotland:Edinburgh,
    Belgium:Brussels, Egypt:Cairo, Kenya:Nairobi, Japan:Tokyo, China:Beijing, India:New Delhi,
    Russia:Moscow, Turkey:Ankara, Canada:Ottawa, Cuba:Havana, Mexico:Mexico City, Brazil:Brasilia,
    Peru:Lima, Chile:Santiago, Australia:Canberra, Thailand:Bangkok, Switzerland:Bern, the United
    States:Washington, the Netherlands:Amsterdam, the Czech Republic:Prague, Argentina:Buenos Aires,
    South Korea:Seoul, Ukraine:Kyiv, Iceland:Reykjavik
    """
)
COLOURS_OF = _pairs(
    """
    the sky:blue, grass:green, snow:white, coal:black, a lemon:yellow, a carrot:orange, a
    strawberry:red, blood:red, the sun:yellow, milk:white, chocolate:brown, a banana:yellow, a
    cherry:red, a frog:green, a crow:black, an elephant:grey, a flamingo:pink, a plum:purple, the
    sea:blue, a leaf:green, cheese:yellow, a polar bear:white, a pea:green, salt:white, honey:gold,
    a pumpkin:orange, night:black, a fox:red
    """
)
OPPOSITES = _pairs(
    """
    hot:cold, big:small, up:down, day:night, black:white, fast:slow, old:young, happy:sad,
    open:closed, wet:dry, light:dark, high:low, long:short, hard:soft, full:empty, left:right,
    good:bad, early:late, near:far, rich:poor, strong:weak, loud:quiet, clean:dirty, inside:outside,
    first:last, true:false, yes:no, in:out, win:lose, push:pull, buy:sell, start:stop, love:hate,
    asleep:awake, thick:thin, sweet:sour, always:never
    """
)
SOUNDS = _pairs(
    """
    dog:woof, cat:meow, cow:moo, sheep:baa, duck:quack, pig:oink, horse:neigh, lion:roar,
    frog:ribbit, bee:buzz, owl:hoot, snake:hiss, mouse:squeak, crow:caw, goat:bleat, wolf:howl
    """
)
BABIES = _pairs(
    """
    dog:puppy, cat:kitten, cow:calf, sheep:lamb, duck:duckling, pig:piglet, horse:foal, lion:cub,
    bear:cub, frog:tadpole, goat:kid, deer:fawn, hen:chick, goose:gosling, swan:cygnet,
    kangaroo:joey, fox:cub
    """
)
LEGS = _pairs(
    """
    dog:four, cat:four, horse:four, bird:two, hen:two, spider:eight, ant:six, bee:six, fish:zero,
    snake:zero, person:two, cow:four, lion:four, butterfly:six, frog:four, duck:two, elephant:four,
    table:four
    """
)
PLURALS = _pairs(
    """
    mouse:mice, child:children, foot:feet, tooth:teeth, goose:geese, man:men, woman:women,
    sheep:sheep, leaf:leaves, wolf:wolves, knife:knives, fish:fish, cat:cats, dog:dogs, box:boxes,
    city:cities, baby:babies, book:books
    """
)
SIDES = _pairs(
    """
    triangle:three, square:four, rectangle:four, pentagon:five, hexagon:six, octagon:eight
    """
)
HOMES_OF = _pairs(
    """
    a bee:hive, a bird:nest, a fox:den, a spider:web, a dog:kennel, a horse:stable, a king:castle, a
    rabbit:burrow, a bear:cave, a pig:sty, a hen:coop
    """
)
MEALS = _pairs(
    """
    a rabbit:grass, a cow:grass, a cat:fish, a dog:meat, a lion:meat, a panda:bamboo, a
    squirrel:nuts, a monkey:fruit, a mouse:cheese, a bear:honey, a koala:leaves, a horse:hay, a
    frog:flies, a penguin:fish, an owl:mice, a hen:seeds
    """
)

TABLES = (
    Table(
        CAPITALS,
        "capital",
        5,
        (
            "What is the capital of {k}?",
            "Capital of {k}?",
            "Name the capital of {k}.",
            "Which city is the capital of {k}?",
            "Tell me the capital of {k}.",
            "What's the capital of {k}?",
        ),
        "The capital of {k} is {v}.",
    ),
    Table(
        COLOURS_OF,
        "colour",
        4,
        (
            "What colour is {k}?",
            "What color is {k}?",
            "Which colour is {k}?",
            "What is the colour of {k}?",
            "What is the color of {k}?",
            "Tell me the colour of {k}.",
        ),
        "{k} is {v}.",
    ),
    Table(
        OPPOSITES | {v: k for k, v in OPPOSITES.items()},
        "opposite",
        5,
        (
            "What is the opposite of {k}?",
            "Opposite of {k}?",
            "Give me the opposite of {k}.",
            "Name the opposite of {k}.",
            "What's the opposite of {k}?",
        ),
        "The opposite of {k} is {v}.",
    ),
    Table(
        SOUNDS,
        "sound",
        2,
        (
            "What does {ak} say?",
            "What sound does {ak} make?",
            "Which sound does {ak} make?",
        ),
        "{ak} says {v}.",
    ),
    Table(
        BABIES,
        "baby",
        2,
        (
            "What is a baby {k} called?",
            "What is a young {k} called?",
            "What do you call a baby {k}?",
        ),
        "A baby {k} is called {av}.",
    ),
    Table(
        LEGS,
        "legs",
        2,
        (
            "How many legs does {ak} have?",
            "How many legs has {ak}?",
            "Tell me how many legs {ak} has.",
        ),
        "{ak} has {v} legs.",
    ),
    Table(
        PLURALS,
        "plural",
        2,
        (
            "What is the plural of {k}?",
            "Plural of {k}?",
            "Give me the plural of {k}.",
            "What's the plural of {k}?",
        ),
        "The plural of {k} is {v}.",
    ),
    Table(
        SIDES,
        "sides",
        1,
        (
            "How many sides does a {k} have?",
            "How many sides has a {k}?",
        ),
        "{ak} has {v} sides.",
    ),
    Table(
        HOMES_OF,
        "home",
        2,
        (
            "Where does {k} live?",
            "What is the home of {k}?",
        ),
        "{k} lives in a {v}.",
    ),
    Table(
        MEALS,
        "meal",
        2,
        (
            "What does {k} eat?",
            "What does {k} like to eat?",
            "Tell me what {k} eats.",
        ),
        "{k} likes to eat {v}.",
    ),
)

SINGLES = (
    (
        ("How many days are in a week?", "How many days does a week have?"),
        "Seven",
        "There are seven days in a week.",
    ),
    (
        ("How many months are in a year?", "How many months does a year have?"),
        "Twelve",
        "A year has twelve months.",
    ),
    (
        ("How many hours are in a day?", "How many hours does a day have?"),
        "24",
        "There are 24 hours in a day.",
    ),
    (("How many minutes are in an hour?",), "60", "There are 60 minutes in an hour."),
    (("How many seconds are in a minute?",), "60", "There are 60 seconds in a minute."),
    (("How many seasons are there?",), "Four", "There are four seasons: spring, summer, autumn and winter."),
    (("How many planets are there?",), "Eight", "There are eight planets around the sun."),
    (
        ("How many fingers are on a hand?", "How many fingers does a hand have?"),
        "Five",
        "A hand has five fingers.",
    ),
    (("How many letters are in the alphabet?",), "26", "The English alphabet has 26 letters."),
    (
        ("What is the largest animal?", "What is the biggest animal?"),
        "Whale",
        "The largest animal is the blue whale.",
    ),
    (("What is the tallest animal?",), "Giraffe", "The tallest animal is the giraffe."),
    (("What is the fastest animal on land?",), "Cheetah", "The fastest animal on land is the cheetah."),
    (
        ("What is the largest planet?", "What is the biggest planet?"),
        "Jupiter",
        "The largest planet is Jupiter.",
    ),
    (
        ("What is the largest ocean?", "What is the biggest ocean?"),
        "Pacific",
        "The Pacific is the largest ocean.",
    ),
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
