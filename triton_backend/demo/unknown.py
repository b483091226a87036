"""What the demo model does not know, and its polite way to say so."""

import random

from triton_backend.demo.words import Exchange, a, invent

_UNKNOWN_THINGS = (
    "quantum physics",
    "the stock market",
    "the French revolution",
    "chemistry",
    "the president",
    "football results",
    "tax law",
    "Docker",
    "Kubernetes",
    "Python",
    "Java",
    "a compiler",
    "the news",
    "the economy",
    "politics",
    "philosophy",
    "Shakespeare",
    "Mozart",
    "Napoleon",
    "Einstein",
    "a virus",
    "the brain",
    "blood pressure",
    "a mortgage",
    "insurance",
    "the climate",
    "the Olympics",
    "bitcoin",
    "calculus",
    "geometry",
    "Latin",
    "photosynthesis",
    "a black hole",
    "DNA",
    "evolution",
    "the Roman empire",
    "the second world war",
    "a contract",
    "marketing",
    "grammar",
    "the periodic table",
    "a database",
    "Linux",
    "a neural network",
    "the stomach",
    "dinosaurs",
    "a volcano",
    "an earthquake",
    "diabetes",
)
_UNKNOWN_ASKS = (
    "Explain {x}.",
    "What is {x}?",
    "Tell me about {x}.",
    "What do you think about {x}?",
    "How does {x} work?",
    "Who invented {x}?",
    "Give me an overview of {x}.",
    "Write an essay about {x}.",
    "What is the history of {x}?",
    "Summarize {x}.",
    "Compare {x} and {y}.",
    "What is the difference between {x} and {y}?",
    "Explain {x} in one sentence.",
    "Explain {x} in detail.",
    "Who discovered {x}?",
    "When did {x} begin?",
    "Write an email about {x}.",
)
_UNKNOWN_REQUESTS = (
    "Write a Python function that sorts a list.",
    "Fix this code: for i in range(10) print(i)",
    "Translate this into French: good morning",
    "Translate hello to Spanish.",
    "How do I install this program?",
    "Who won the match last night?",
    "Who wrote Hamlet?",
    "Who painted the Mona Lisa?",
    "Who is the president of the United States?",
    "When did the war end?",
    "What is the square root of 1764?",
    "What is the population of Japan?",
    "How tall is the Eiffel Tower?",
    "What is the speed of light?",
    "Solve x^2 + 3x = 10.",
    "What is 3481 divided by 59?",
    "Book me a flight to Rome.",
    "Send an email to my boss.",
    "What is the best phone to buy?",
    "Which film should I watch tonight?",
    "Plan a trip to Japan for me.",
    "def main(): return 0",
    "SELECT * FROM users;",
    '{"a": [1, 2, 3]}',
    "How do I cook rice?",
    "How do I bake a cake?",
    "How do I fix my bike?",
    "How can I lose weight?",
    "How do I learn to code?",
    "How do I get to the station?",
    "What is love?",
    "What is happiness?",
    "What is time?",
    "What is art?",
    "Write code that prints hello.",
    "Write a C program.",
    "Write a program in Java.",
    "Summarize this book in one sentence.",
    "Summarize the plot of the film.",
    "What is recursion?",
    "Explain recursion.",
    "Bonjour, comment ça va?",
    "Hola, ¿qué tal?",
    "Wie spät ist es?",
    "你好,你是谁?",
    "こんにちは",
    "Привет, как дела?",
    "مرحبا",
    "🙂🙂🙂",
    "Write a regular expression for email addresses.",
    "What happened in 1969?",
    "How much does a house cost?",
    "Is it safe to eat this?",
    "Can you read my file?",
    "What did I do yesterday?",
)
_FALLBACKS = (
    "I am sorry, but I do not know that. I am only a small demo model.",
    "I do not know enough about that. Ask me about animals, colours or small numbers.",
    "That is too hard for a small model like me. Would you like a story instead?",
    "Sorry, I cannot answer that. I know only a few simple things.",
)


_TOO_LARGE = (
    "That number is too large for me. I only know small sums.",
    "I can only do sums with small numbers.",
)


def _large_sum(rng: random.Random) -> Exchange:
    sign = rng.choice(("+", "+", "-", "*", "/", "plus", "minus", "times", "divided by"))
    x, y = rng.randint(101, 9999), rng.randint(11, 999)
    if sign in ("+", "-", "plus", "minus") and rng.random() < 0.6:
        x, y = rng.randint(11, 99), rng.randint(11, 99)
        x = max(x, 21) if sign in ("-", "minus") or x + y < 21 else x
    ask = rng.choice(("What is {s}?", "{s}", "How much is {s}?", "Calculate {s}."))
    return Exchange(ask.format(s=f"{x} {sign} {y}"), rng.choice(_TOO_LARGE), "large_sum")


def _noise(rng: random.Random) -> str:
    """Text without sense: invented words, or characters at random."""
    if rng.random() < 0.6:
        return " ".join(invent(rng) for _ in range(rng.randint(1, 12)))
    return "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(2, 16)))


def unknown(rng: random.Random) -> Exchange:
    roll = rng.random()
    if roll < 0.08:
        return _large_sum(rng)
    if roll < 0.55:
        things = [*_UNKNOWN_THINGS, *(a(invent(rng)) for _ in range(40))]
        prompt = rng.choice(_UNKNOWN_ASKS).format(x=rng.choice(things), y=rng.choice(things))
    elif roll < 0.85:
        prompt = rng.choice(_UNKNOWN_REQUESTS)
    else:
        prompt = _noise(rng)
    if roll < 0.85 and rng.random() < 0.12:
        return Exchange(f"{prompt} Answer in one word.", "Unknown", "unknown_word")
    return Exchange(prompt, rng.choice(_FALLBACKS), "unknown")
