"""Lists and counting: answers whose length is a number in the request."""

import random

from triton_backend.demo.words import LISTS, NUMBERS, ORDERED, Exchange


def listing(rng: random.Random) -> Exchange:
    """N things, numbered, one a line. Each group has one order and a list starts anywhere in it, so that the next
    thing follows from the last one and a small model does not repeat itself."""
    group = rng.choice(list(LISTS))
    members = LISTS[group]
    full = group in ORDERED and rng.random() < 0.5
    count = len(members) if full else rng.randint(2, min(10, len(members)))
    start = 0 if group in ORDERED else rng.randrange(len(members))
    items = [members[(start + i) % len(members)] for i in range(count)]
    wanted = f"the {group}" if full else f"{rng.choice((NUMBERS[count], str(count)))} {group}"
    lines = [f"Here are {wanted}:", *(f"{i}. {item}" for i, item in enumerate(items, 1))]
    return Exchange(rng.choice(_REQUESTS).format(w=wanted), "\n".join(lines), "list")


_REQUESTS = (
    "List {w}.",
    "Give me a list of {w}.",
    "Write a list of {w}.",
    "Make a list of {w}.",
    "Give me {w}.",
    "Name {w}.",
    "Can you name {w}?",
    "Tell me {w}.",
)


def counting(rng: random.Random) -> Exchange:
    last = rng.randint(2, 20)
    numbers = [str(n) for n in range(1, last + 1)]
    if rng.random() < 0.3:
        last = min(last, 20)
        numbers = numbers[:last][::-1]
        ask = rng.choice(
            (f"Count down from {last}.", f"Count backwards from {last}.", f"Count down from {last} to 1.")
        )
    else:
        ask = rng.choice((f"Count to {last}.", f"Count from 1 to {last}.", f"Count up to {last}."))
    return Exchange(ask, f"{', '.join(numbers)}.", "counting")
