"""Lists and counting: answers whose length is a number in the request."""

import random

from triton_backend.demo.words import LISTS, NUMBERS, ORDERED, Exchange, cap, join


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
        return Exchange(
            rng.choice(("Name {w}.", "Can you name {w}?")).format(w=wanted), f"{cap(join(items))}.", "naming"
        )
    asks = (
        "List {w}.",
        "Give me a list of {w}.",
        "Write a list of {w}.",
        "Make a list of {w}.",
        "Give me {w}.",
    )
    lines = [f"Here are {wanted}:", *(f"{i}. {item}" for i, item in enumerate(items, 1))]
    return Exchange(rng.choice(asks).format(w=wanted), "\n".join(lines), "list")


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
