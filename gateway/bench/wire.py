"""What OpenAI servers stream, reduced to when how many tokens came."""

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None

    @property
    def has_text(self) -> bool:
        return bool(self.text or (self.delta and (self.delta.content or self.delta.reasoning_content)))


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Error | str | None = None


class _Refusal(msgspec.Struct):
    error: _Error | str | None = None
    message: str = ""
    """Where vLLM's older versions have it."""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class Broken(Exception):
    """The stream holds an error, or what no server should send; the message says which."""


class Stream:
    """Takes a stream's lines.  Role-only chunks and comments are no tokens; a server that counts in each chunk
    (`continuous_usage_stats`) is believed, otherwise a chunk with text is one token."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        """The last seen: at the end the whole answer's."""
        self.done = False
        self._seen_tokens = 0
        self._counts_itself = False

    def take(self, line: bytes) -> int:
        """How many tokens the line brings.  Raises Broken."""
        field, _, value = line.partition(b":")
        if field != b"data":
            return 0
        value = value.strip()
        if value == b"[DONE]":
            self.done = True
            return 0
        try:
            return self._take(_decode_chunk(value))
        except msgspec.MsgspecError as error:
            raise Broken(f"unreadable event: {error}") from None

    def _take(self, chunk: _Chunk) -> int:
        if chunk.error:
            raise Broken(_message(chunk.error))
        if chunk.usage:
            self.usage = chunk.usage
        if not chunk.choices:
            return 0
        self._counts_itself |= chunk.usage is not None
        count = int(any(choice.has_text for choice in chunk.choices))
        if self._counts_itself:
            count = max(chunk.usage.completion_tokens - self._seen_tokens, 0) if chunk.usage else 0
        self._seen_tokens += count
        return count


def refusal(body: bytes) -> str:
    """What an error's body says, in one short line."""
    try:
        read = _decode_refusal(body)
    except msgspec.MsgspecError:
        return _short(body.decode(errors="replace"))
    return _message(read.error) if read.error else _short(read.message)


def _message(error: _Error | str) -> str:
    return _short(error if isinstance(error, str) else error.message)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
