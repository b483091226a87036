"""A tokenizer whose tokens are characters."""

from collections.abc import Mapping, Sequence

from gateway.errors import PromptTooLong
from gateway.ports import TokenText


def token_text(token: int) -> TokenText:
    return TokenText(chr(token), chr(token).encode())


class _Detokenizer:
    """Drops a space at a text's start, as sentencepiece's do."""

    def __init__(self, before: Sequence[int]) -> None:
        self._is_begun = any(before)

    def step(self, token: int) -> str:
        if token == 0:
            return ""
        is_first, self._is_begun = not self._is_begun, True
        return "" if is_first and token == ord(" ") else chr(token)

    def flush(self) -> str:
        return ""


class CharTokenizer:
    def __init__(self) -> None:
        self.eos_ids = [0]
        self.vocabulary = 1000

    async def encode(self, texts: Sequence[str], limit_tokens: int) -> list[list[int]]:
        if (most_tokens := max(map(len, texts))) >= limit_tokens:
            raise PromptTooLong(most_tokens)
        return [[ord(char) for char in text] for text in texts]

    async def encode_chat(self, messages: Sequence[Mapping[str, str]], limit_tokens: int) -> list[int]:
        return (await self.encode(["".join(message["content"] for message in messages)], limit_tokens))[0]

    def detokenizer(self, before: Sequence[int] = ()) -> _Detokenizer:
        return _Detokenizer(before)

    def token_text(self, token: int) -> TokenText:
        return token_text(token)
