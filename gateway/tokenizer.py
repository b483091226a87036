"""The model's own tokenizer (Hugging Face), off the event loop where it takes long.

Long texts and their templates run in a few threads: the tokenizers library frees the interpreter while it encodes
a batch (not a single text), so a long prompt delays no one's tokens.  It does not while it makes a list of a
million tokens, so none is made of a prompt that is too long.  Short texts are encoded in place, in about the time
that going to a thread and back takes, and so are tokens decoded.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Self, TypeVar

import jinja2
import msgspec
import tokenizers

from gateway.errors import BadRequest, PromptTooLong
from gateway.ports import TokenText

REPLACEMENT = "\ufffd"
_MAX_HELD_TOKENS = 8
"""A character has at most four bytes, so longer waits are in vain."""
_MAX_LEFT_TOKENS = 3
"""Of a character that is incomplete."""

_LAST_TOKENS = 8
"""Of a prompt: as many as two characters may have."""

_SHORT_CHARS = 1024
"""Take half a millisecond at most."""
_TURN_CHARS = 64
"""A text takes as long as so many characters besides its own, most of it in the template."""

_PROBED_CHARS = 16
"""Of a text, for each token that fits; texts have 2 to 6 characters a token."""

_byte_word = re.compile("<0x([0-9A-F]{2})>")
"""A byte in a vocabulary of sentencepiece's kind."""

_T = TypeVar("_T")


class HFTokenizer:
    """Implements ports.Tokenizer."""

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], *, max_chars: int, threads: int) -> None:
        """`tokenizer` is a transformers one with a Rust backend; see `load`."""
        self._template_source = tokenizer.chat_template or ""
        self._render: Callable[..., str] = tokenizer.apply_chat_template
        self._rust: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        # Either would be applied to every prompt, and changing them later is not safe between threads.
        self._rust.no_truncation()
        self._rust.no_padding()
        self._eos_ids = list(eos_ids)
        self._vocabulary: int = max(self._rust.get_vocab(with_added_tokens=True).values()) + 1
        added = self._rust.get_added_tokens_decoder()
        self._special = frozenset(token for token, added_token in added.items() if added_token.special)
        self._max_chars = max_chars
        self._token_texts: dict[int, TokenText] = {}
        self._token_chars: dict[int, int] = {}
        self._threads = ThreadPoolExecutor(threads, "tokenizer")

    @classmethod
    def load(cls, model: str, *, max_chars: int = 4_000_000, threads: int = 2) -> Self:
        """`model` is a folder or a Hugging Face id.  Texts above `max_chars` are refused unread.

        Raises ValueError if the model has no fast tokenizer, OSError if it cannot be found, and
        jinja2.TemplateSyntaxError if its chat template is none.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(f"{model} has no fast tokenizer (tokenizer.json): only those can serve")
        if tokenizer.chat_template:
            _check_template(tokenizer)
        return cls(tokenizer, _eos_ids(model, tokenizer), max_chars=max_chars, threads=threads)

    @property
    def eos_ids(self) -> list[int]:
        return self._eos_ids

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    async def encode(self, texts: Sequence[str], limit_tokens: int) -> list[list[int]]:
        """Raises PromptTooLong, and BadRequest if the texts are too long to be worth encoding."""
        return await self._run(texts, "prompt", lambda: self._ids(texts, limit_tokens, add_special_tokens=True))

    async def encode_chat(self, messages: Sequence[Mapping[str, str]], limit_tokens: int) -> list[int]:
        """Raises PromptTooLong, and BadRequest if the texts are too long to be worth encoding, the model has no
        chat template, or the template refuses the turns."""
        texts = [message["content"] for message in messages]
        return await self._run(texts, "messages", lambda: self._encode_chat(messages, limit_tokens))

    def detokenizer(self, before: Sequence[int] = ()) -> "HFDetokenizer":
        return HFDetokenizer(self._rust, self._special, self._token_chars, before)

    def token_text(self, token: int) -> TokenText:
        found = self._token_texts.get(token)
        if found is None:
            text = self._decode_inner(token)
            utf8 = self._bytes(token) if REPLACEMENT in text else text.encode()
            found = self._token_texts[token] = TokenText(text, utf8)
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, texts: Sequence[str], field: str, work: Callable[[], _T]) -> _T:
        """What is to be done with a field's texts, in the right place.  Raises BadRequest if they are too long."""
        total = sum(map(len, texts))
        if total > self._max_chars:
            raise BadRequest(
                f"'{field}' has {total} characters; this model takes {self._max_chars} at most.",
                param=field,
                code="context_length_exceeded",
            )
        if total + _TURN_CHARS * len(texts) <= _SHORT_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _encode_chat(self, messages: Sequence[Mapping[str, str]], limit_tokens: int) -> list[int]:
        if not self._template_source:
            raise BadRequest("This model has no chat template: use /v1/completions.", param="messages")
        try:
            text = self._render(self._turns(messages), tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise BadRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        # The template writes the special tokens itself: a second beginning-of-text would change the answer.
        return self._ids([text], limit_tokens, add_special_tokens=False)[0]

    def _ids(self, texts: Sequence[str], limit_tokens: int, *, add_special_tokens: bool) -> list[list[int]]:
        self._probe(texts, limit_tokens)
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        most_tokens = max(map(len, encodings))
        if most_tokens >= limit_tokens:
            raise PromptTooLong(most_tokens)
        return [encoding.ids for encoding in encodings]

    def _probe(self, texts: Sequence[str], limit_tokens: int) -> None:
        """Refuse what is far too long by its beginning: a body of some MB would take seconds of a core.

        Where a text is cut changes a few tokens at the cut, so one that has twice as many as fit is too long."""
        probed_chars = _PROBED_CHARS * limit_tokens
        beginnings = [text[:probed_chars] for text in texts if len(text) > 2 * probed_chars]
        if beginnings:
            encodings = self._rust.encode_batch_fast(beginnings, add_special_tokens=False)
            most_tokens = max(map(len, encodings))
            if most_tokens >= 2 * limit_tokens:
                raise PromptTooLong(most_tokens, is_least=True)

    def _turns(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """`developer` is OpenAI's newer word for `system`; only some templates know it."""
        turns = [dict(message) for message in messages]
        if "developer" not in self._template_source:
            for turn in turns:
                if turn["role"] == "developer":
                    turn["role"] = "system"
        return turns

    def _decode_inner(self, token: int) -> str:
        """As inside a text: many decoders drop a space at a text's start."""
        once = self._rust.decode([token], skip_special_tokens=False)
        return self._rust.decode([token, token], skip_special_tokens=False)[len(once) :]

    def _bytes(self, token: int) -> bytes | None:
        """Of a token that is no text, as its vocabulary writes them."""
        word = self._rust.id_to_token(token) or ""
        if byte := _byte_word.fullmatch(word):
            return bytes.fromhex(byte[1])
        byte_of = _byte_of()
        return bytes(byte_of[letter] for letter in word) if byte_of.keys() >= set(word) else None


class HFDetokenizer:
    """Text of a growing sequence of tokens, a few tokens decoded at a time.

    `context` are the tokens whose text was returned last; they are decoded again with the new ones, since a
    token's text may depend on its neighbour.  (The library's own DecodeStream does the same, but raises on
    some sequences of byte tokens that a model may well draw, and can hold text back without end.)
    """

    __slots__ = ("_chars", "_context", "_pending", "_rust", "_shown", "_special")

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        special: frozenset[int],
        chars: dict[int, int],
        before: Sequence[int] = (),
    ) -> None:
        """`chars` is where to remember how many characters a token has as a text of its own."""
        self._rust = rust
        self._special = special
        self._chars = chars
        self._context: list[int] = []
        self._pending: list[int] = []
        self._shown = 0
        """Characters of the context's text that were returned."""
        self._go_on_after([token for token in before[-_LAST_TOKENS:] if token not in special])

    def step(self, token: int) -> str:
        if token in self._special:
            return ""
        self._pending.append(token)
        text = self._rust.decode(self._context + self._pending)
        # The last character may be one that the next tokens complete.
        sure = len(text) - text.endswith(REPLACEMENT)
        new = text[self._shown : sure]
        if (sure < len(text) or not new) and len(self._pending) < _MAX_HELD_TOKENS:
            return ""
        self._context, self._pending = self._pending, []
        self._shown = self._context_chars() - (len(text) - sure)
        return new

    def _go_on_after(self, tokens: list[int]) -> None:
        """The context is as few of these last tokens as have a text of whole characters: a character that they
        leave incomplete is shown when the next ones complete it."""
        for end in range(len(tokens), max(-1, len(tokens) - _MAX_LEFT_TOKENS - 1), -1):
            for start in range(max(0, end - 1), -1, -1):
                text = self._rust.decode(tokens[start:end])
                # Without text they would leave the next token a text's first, unless there is nothing before.
                if REPLACEMENT not in text and (text or not start):
                    self._context, self._pending, self._shown = tokens[start:end], tokens[end:], len(text)
                    return

    def _context_chars(self) -> int:
        """Nearly always of one token: then it need not be decoded again."""
        if len(self._context) > 1:
            return len(self._rust.decode(self._context))
        token = self._context[0]
        chars = self._chars.get(token)
        if chars is None:
            chars = self._chars[token] = len(self._rust.decode(self._context))
        return chars

    def flush(self) -> str:
        return self._rust.decode(self._context + self._pending)[self._shown :]


@cache
def _byte_of() -> dict[str, int]:
    """By letter of GPT-2's alphabet, in which the words of a byte-level vocabulary are written."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


def _check_template(tokenizer: Any) -> None:
    """Raises jinja2.TemplateSyntaxError: else each chat would be told that its messages are refused."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except jinja2.TemplateSyntaxError:
        raise
    except (jinja2.TemplateError, TypeError, ValueError):
        pass  # It can be read, and has more to ask of a chat.


def _eos_ids(model: str, tokenizer: Any) -> list[int]:
    from transformers.utils.hub import cached_file

    ids = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with open(path, "rb") as file:
                found = msgspec.json.decode(file.read(), type=_Eos).eos_token_id
            return sorted(ids.union([found] if isinstance(found, int) else found or []))
    return sorted(ids)


class _Eos(msgspec.Struct):
    eos_token_id: int | list[int] | None = None
