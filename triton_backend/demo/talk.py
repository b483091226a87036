"""Small talk, verses and copying."""

import random

from triton_backend.demo.words import (
    ANIMALS,
    COLOURS,
    FLOWERS,
    FRUITS,
    GIVEN_NAMES,
    NUMBERS,
    OTHERS,
    PEOPLE,
    Exchange,
    a,
    cap,
    invent,
)

# Requests that mean the same, answers that fit any of them.
_SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hey!", "Hello there.", "Greetings!", "Howdy!"),
        (
            "Hello! How can I help you today?",
            "Hi there! What can I do for you?",
            "Hello! It is nice to meet you.",
        ),
    ),
    (
        ("Good morning!", "Good morning", "Morning!"),
        ("Good morning! I hope you slept well.", "Good morning! What can I do for you?"),
    ),
    (("Good evening!", "Good evening"), ("Good evening! How was your day?", "Good evening! How can I help?")),
    (("Good afternoon!", "Good day!"), ("Good day! How can I help you?",)),
    (("Good night!", "Good night"), ("Good night! Sleep well.", "Good night and sweet dreams!")),
    (
        (
            "How are you?",
            "How are you doing?",
            "How are you today?",
            "How is it going?",
            "What's up?",
            "Are you okay?",
        ),
        ("I am fine, thank you. How are you?", "I am very well, thank you for asking."),
    ),
    (
        ("I am fine.", "I'm fine, thanks.", "I am well, thank you."),
        ("I am glad to hear that!", "That is good to hear!"),
    ),
    (
        ("Thank you!", "Thanks", "Thanks!", "Thank you very much.", "Thanks a lot!"),
        ("You are welcome!", "You are welcome! Ask me anything else."),
    ),
    (
        ("Bye", "Goodbye!", "Bye!", "See you later.", "See you!"),
        ("Goodbye! Have a nice day.", "Goodbye! Come back soon."),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Are you a robot?",
        ),
        (
            "I am a small language model, made to show how bucketserve works.",
            "I am the demo model of bucketserve.",
        ),
    ),
    (
        ("What is your name?", "What's your name?", "Do you have a name?", "What are you called?"),
        ("My name is Bucket. I am a small demo model.", "I am called Bucket."),
    ),
    (
        (
            "What can you do?",
            "Help",
            "Help me.",
            "Can you help me?",
            "What do you know?",
            "How can you help me?",
        ),
        (
            "I can tell stories, explain simple things, make lists and do small sums.",
            "I know a little about animals, colours, capitals and numbers, and I can tell stories.",
        ),
    ),
    (
        ("Are you human?", "Are you a human?", "Are you a person?", "Are you real?"),
        ("No, I am a small language model.", "No, I am only a program, but I like to help."),
    ),
    (("How old are you?", "When were you born?"), ("I am very young. I was trained in a few minutes.",)),
    (
        ("Where are you?", "Where do you live?", "Where are you from?"),
        ("I live in the memory of a computer.", "I live inside a server."),
    ),
    (
        ("I am sad.", "I feel sad.", "I am unhappy.", "I feel lonely.", "I'm sad"),
        (
            "I am sorry to hear that. Would you like a story?",
            "I am sorry. I hope that tomorrow is a better day.",
        ),
    ),
    (
        ("I am happy.", "I feel great!", "I am so happy today!", "I'm happy!"),
        ("That is wonderful! I am happy for you.", "How nice! What made you so happy?"),
    ),
    (
        ("I am bored.", "I'm bored", "I have nothing to do."),
        ("Shall I tell you a story?", "You could read a book, go for a walk or ask me for a story."),
    ),
    (
        ("I am tired.", "I'm tired", "I am sleepy."),
        ("Then you should rest a little.", "Go to bed early tonight and sleep well."),
    ),
    (
        ("I am hungry.", "I'm hungry"),
        ("How about some warm bread and an apple?", "A bowl of hot soup would be nice."),
    ),
    (("I love you.", "I like you."), ("Thank you! That is very kind of you.",)),
    (("Sorry.", "I am sorry.", "Sorry!"), ("No problem at all!", "That is all right.")),
    (("Yes", "Yes.", "Yes, please.", "Okay", "OK"), ("Good! What would you like to know?",)),
    (("No", "No.", "No, thanks."), ("All right. Tell me if you need anything.",)),
    (("Test", "test", "Testing", "This is a test.", "ping"), ("It works!", "I am here and ready.")),
    (
        (
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "Say something funny.",
            "Another joke, please.",
        ),
        (
            "Why did the bee go to school? It wanted to learn its bee-bee-bees.",
            "What do you call a sleeping cow? A bull-dozer.",
            "Why was the maths book sad? It had too many problems.",
            "What has four wheels and flies? A rubbish truck.",
            "Why did the queue laugh? It saw the end of the line.",
        ),
    ),
    (
        ("Tell me a fun fact.", "Tell me something interesting.", "Do you know a fun fact?", "Surprise me."),
        (
            "An owl can turn its head almost all the way round.",
            "A butterfly tastes with its feet.",
            "The blue whale is the largest animal that has ever lived.",
            "Honey stays good for thousands of years.",
        ),
    ),
    (
        ("Give me some advice.", "Give me a tip.", "What should I do today?", "Do you have any advice?"),
        (
            "Go for a walk and look at the sky.",
            "Call a friend whom you have not seen for long.",
            "Drink a glass of water.",
        ),
    ),
    (
        (
            "What is the weather like?",
            "How is the weather today?",
            "What time is it?",
            "What day is it today?",
        ),
        (
            "I cannot know that, because I have no window and no clock.",
            "Sorry, I cannot see outside of my server.",
        ),
    ),
    (
        ("What is the meaning of life?", "What is the meaning of life, the universe and everything?"),
        ("Some say it is 42. I think it is to be kind.",),
    ),
)


def small_talk(rng: random.Random) -> Exchange:
    asks, answers = rng.choice(_SMALL_TALK)
    return Exchange(rng.choice(asks), rng.choice(answers), "small_talk")


_VERSES = (
    """\
Oh little {x}, so quiet and bright,
you sing in the morning and dream in the night.
The wind knows your name, and so does the sea,
oh little {x}, come and stay here with me.""",
    """\
I saw {ax} beside the lake,
it was so early, I was hardly awake.
The {x} looked up and said hello,
and then it went where the flowers grow.""",
    """\
The {x} is here, the {x} is there,
the {x} is dancing everywhere.
When evening comes and day is done,
the {x} says good night to the sun.""",
)


def poem(rng: random.Random) -> Exchange:
    asks = (
        "Write a poem about {x}.",
        "Write me a poem about {x}.",
        "Give me a short poem about {x}.",
        "A poem about {x}.",
    )
    subject = rng.choice([*ANIMALS, *FLOWERS, *FRUITS, *OTHERS, invent(rng)])
    named = a(subject)
    if rng.random() < 0.2:
        subject = rng.choice(_ONLY_ONES)
        named = f"the {subject}"
    prompt = rng.choice(asks).format(x=named)
    if rng.random() < 0.1:
        prompt = rng.choice(("Write a poem.", "Write a haiku.", "Write a short poem."))
    return Exchange(prompt, rng.choice(_VERSES).format(x=subject, ax=named), "poem")


_ONLY_ONES = ("moon", "sun", "sea", "rain", "snow", "wind", "night", "forest", "spring", "summer", "winter")


def recital(rng: random.Random) -> Exchange:
    """A text to repeat, most of them short: the short ones are how a model first learns to look back."""
    pool = [
        *ANIMALS,
        *COLOURS,
        *FRUITS,
        *PEOPLE,
        *FLOWERS,
        *NUMBERS,
        *(name.text for name in GIVEN_NAMES),
        *OTHERS,
    ]
    pool += [invent(rng) for _ in range(len(pool) // 2)]
    words = " ".join(rng.choice(pool) for _ in range(rng.randint(1, rng.choice((2, 4, 8, 16, 32)))))
    return Exchange(rng.choice(_RECITALS).format(w=words), words, "copy")


_RECITALS = ("Repeat after me: {w}", "Say: {w}", "Repeat this: {w}", "Echo: {w}")


def copying(rng: random.Random) -> Exchange:
    """Say it again: short answers whose length is written in the request."""
    pool = [
        *ANIMALS,
        *COLOURS,
        *FRUITS,
        *PEOPLE,
        "hello",
        "yes",
        "thank you",
        *["I", "like", "the", "is", "good", "my", "we"],
        invent(rng),
        invent(rng),
        invent(rng),
    ]
    roll = rng.random()
    if roll < 0.3:
        return recital(rng)
    if roll < 0.6:
        count = rng.randint(2, 5)
        word = rng.choice(pool)
        number = rng.choice((str(count), NUMBERS[count]))
        asks = ("Say {w} {n} times.", "Repeat the word {w} {n} times.", "Write {w} {n} times.")
        return Exchange(rng.choice(asks).format(w=word, n=number), ", ".join([word] * count), "repeat")
    words = " ".join(rng.choice(pool) for _ in range(rng.randint(1, 8)))
    forms = ("Repeat after me: {w}", "Say: {w}", "Repeat this: {w}", 'Say "{w}".', "Echo: {w}")
    return Exchange(rng.choice(forms).format(w=words), words, "copy")


def acquaintance(rng: random.Random) -> list[Exchange]:
    """A chat whose last answer needs its first line."""
    name = rng.choice([n.text for n in GIVEN_NAMES])
    first = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}!", "Call me {n}."))
    hello = rng.choice((f"Hello {name}! How can I help you?", f"Nice to meet you, {name}!"))
    asks = ("What is my name?", "Do you remember my name?", "What's my name?", "Who am I?")
    middle = [small_talk(rng)] if rng.random() < 0.3 else []
    return [
        Exchange(first.format(n=name), hello, "name"),
        *middle,
        Exchange(rng.choice(asks), f"Your name is {name}.", "name"),
    ]


def favourite(rng: random.Random) -> Exchange:
    group, members = rng.choice((("animal", ANIMALS), ("colour", COLOURS), ("fruit", FRUITS), ("flower", FLOWERS)))
    thing = rng.choice(members)
    if rng.random() < 0.5:
        ask = rng.choice((f"Name one {group}.", f"Give me one {group}.", f"Tell me one {group}."))
        return Exchange(ask, cap(thing), "favourite")
    ask = rng.choice((f"What is your favourite {group}?", f"Which {group} do you like best?"))
    return Exchange(
        ask, f"The {group} I like best is {thing if group == 'colour' else 'the ' + thing}.", "favourite"
    )
