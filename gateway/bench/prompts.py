"""Prompts of a wanted length.  Each is different, so that no prefix cache helps; all are the same for a seed."""

from pathlib import Path
from typing import Protocol

import numpy as np

from gateway.options import SettingsError

FIRST_ID = 100
"""Below are often special tokens."""
_TRIES = 8
_WORDS = (
    *("river", "stone", "apple", "window", "garden", "winter", "music", "letter"),
    *("bridge", "candle", "forest", "market", "silver", "morning", "paper", "yellow"),
)


class Prompts(Protocol):
    def prompt(self, request: int, tokens: int) -> str | list[int]: ...


class IdPrompts:
    def __init__(self, vocabulary: int, seed: int) -> None:
        self._vocabulary = vocabulary
        self._seed = seed

    def prompt(self, request: int, tokens: int) -> list[int]:
        rng = np.random.default_rng((self._seed, request))
        ids: list[int] = rng.integers(FIRST_ID, self._vocabulary, tokens).tolist()
        return ids


class WordPrompts:
    """About one token a word; the report has the server's count."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def prompt(self, request: int, tokens: int) -> str:
        rng = np.random.default_rng((self._seed, request))
        return " ".join(_WORDS[index] for index in rng.integers(0, len(_WORDS), tokens))


class TextPrompts:
    """As many tokens as wanted by a given tokenizer; what a chat template adds is not counted."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        """Raises SettingsError."""
        # Here, not above: only these prompts need the library.
        from tokenizers import Tokenizer

        file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        # The library raises bare Exceptions.
        except Exception as error:
            raise SettingsError(f"--tokenizer {tokenizer}: {error}") from None
        self._words = WordPrompts(seed)

    def prompt(self, request: int, tokens: int) -> str:
        words = self._words.prompt(request, 2 * tokens)
        keep = tokens
        for _ in range(_TRIES):
            text: str = self._tokenizer.decode(self._ids(words)[:keep])
            excess = len(self._ids(text)) - tokens
            if not excess:
                break
            keep -= excess
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
