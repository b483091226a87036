"""A tokenizer whose tokens are characters."""

from collections.abc import Mapping, Sequence


class _Detokenizer:
    def step(self, token: int) -> str:
        return "" if token == 0 else chr(token)

    def flush(self) -> str:
        return ""


class CharTokenizer:
    def __init__(self) -> None:
        self.eos_ids = [0]
        self.vocabulary = 1000

    async def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(char) for char in text] for text in texts]

    async def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [ord(char) for message in messages for char in message["content"]]

    def detokenizer(self) -> _Detokenizer:
        return _Detokenizer()

    def token_text(self, token: int) -> str:
        return chr(token)
