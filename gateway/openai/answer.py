"""Deltas -> what OpenAI clients read: a stream of events, or one completion; and the small objects besides.

A stream's events are put together from bytes prepared once per call, so that a delta costs the encoding of
its text and little else.  `Stream` and `Whole` take the same deltas; both are finished when every choice is.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.errors import ApiError, BadRequest
from gateway.openai.position import LAST_EVENT_ID, Position
from gateway.ports import Call, TokenText
from gateway.request import Delta, TokenLogprob

KEEP_ALIVE = b": keep-alive\n"
DONE = b"data: [DONE]\n\n"
MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""

Texts = Callable[[int], TokenText]
_encode = msgspec.json.Encoder().encode


class Answer:
    """What streamed and whole answers share."""

    def __init__(self, call: Call, token_text: Texts) -> None:
        request = call.request
        self._is_chat = request.is_chat
        self._call_id = call.id
        self._prompt_tokens = sum(call.prompt_tokens)
        self._num_tokens = [0] * (len(call.prompt_tokens) * request.num_choices)
        """Generated so far, by choice."""
        self._unfinished = len(self._num_tokens)
        self._echo = [text for text in call.prompt_texts for _ in range(request.num_choices)]
        self._logprobs = _ChatLogprobs(token_text) if self._is_chat else _CompletionLogprobs(token_text)
        self._head = {
            "id": ("chatcmpl-" if self._is_chat else "cmpl-") + call.id,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": call.created,
            "model": request.model,
            "service_tier": call.service_class,
        }

    @property
    def finished(self) -> bool:
        return not self._unfinished

    @property
    def num_tokens(self) -> int:
        """Generated so far, by all choices."""
        return sum(self._num_tokens)

    def _count(self, delta: Delta) -> None:
        self._num_tokens[delta.choice] = delta.num_tokens
        if delta.finish_reason is not None:
            self._unfinished -= 1

    def _usage(self) -> dict[str, int]:
        generated = self.num_tokens
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
        }


class Stream(Answer):
    """Server-sent events, one per delta that has something to show.

    An event's id is the call's, and per choice how many tokens and characters were sent; it is left out for
    clients that did not ask for it, as some read nothing but data.  A choice's role comes with its first text: a
    chunk without text would count as a first token in benchmarks.

    A stream that goes on from some `sent` takes all deltas from the beginning, and shows what comes after.  The
    ends of choices are shown again: no position tells whether they were seen.
    """

    def __init__(
        self, call: Call, token_text: Texts, sent: Sequence[Position] | None = None, has_ids: bool = True
    ) -> None:
        """Raises BadRequest if `sent` does not have a position for each choice."""
        super().__init__(call, token_text)
        request = call.request
        if self._is_chat:
            self._head["object"] = "chat.completion.chunk"
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._from = sent
        self._has_ids = has_ids
        if sent is not None and len(sent) != len(self._num_tokens):
            raise BadRequest(f"This stream has {len(self._num_tokens)} choices.", param=LAST_EVENT_ID)
        places = sent or [Position(0, 0)] * len(self._num_tokens)
        self._sent = [f"{tokens}.{chars}" for tokens, chars in places]
        """`tokens.chars` by choice, for ids."""
        self._begun = [tokens > 0 for tokens, _ in places]
        self._first_key = b'"role":"assistant","content":' if self._is_chat else b'"text":'
        self._key = b'"content":' if self._is_chat else b'"text":'
        self._before_choices = b"data: " + _encode(self._head)[:-1] + b',"choices":['
        delta = b'"delta":{' if self._is_chat else b""
        self._before_key = [
            self._before_choices + b'{"index":%d,' % index + delta for index in range(len(self._sent))
        ]
        self._after_text = b"}" if self._is_chat else b""
        self._after_choices = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._plain_end = self._after_text + b',"logprobs":null,"finish_reason":null}' + self._after_choices

    @property
    def keep_alive(self) -> bytes:
        """What shows that the stream is alive.  OpenAI's client takes an empty line after the first id for an
        event, others take the lines up to one for a whole comment."""
        return KEEP_ALIVE if self._has_ids and any(self._begun) else KEEP_ALIVE + b"\n"

    def take(self, deltas: Sequence[Delta]) -> bytes:
        """What to send for them, and the stream's end after the last; empty if there is nothing to show."""
        events = b"".join(map(self._event, deltas))
        return events + self._end() if self.finished else events

    def _event(self, delta: Delta) -> bytes:
        choice = delta.choice
        self._count(delta)
        if self._from is not None:
            delta = self._after(delta, self._from[choice])
        if self._has_ids:
            self._sent[choice] = f"{delta.num_tokens}.{delta.num_chars}"
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        if self._begun[choice]:
            text = self._key + _encode(delta.text) if delta.text or not self._is_chat else b""
        else:
            text = self._first_key + _encode(self._first_text(delta))
        if not delta.logprobs and delta.finish_reason is None and not self._continuous_usage:
            end = self._plain_end
        else:
            end = self._full_end(delta)
        return b"".join((self._id_line(), self._before_key[choice], text, end))

    def _after(self, delta: Delta, sent: Position) -> Delta:
        """What of a delta comes after a position."""
        if delta.num_tokens - len(delta.tokens) >= sent.tokens and delta.num_chars - len(delta.text) >= sent.chars:
            return delta
        num_tokens, num_chars = max(0, delta.num_tokens - sent.tokens), max(0, delta.num_chars - sent.chars)
        logprobs = delta.logprobs
        if logprobs:
            seen = max(0, len(logprobs) - num_tokens)
            self._logprobs.part(delta.choice, logprobs[:seen])
            logprobs = logprobs[seen:]
        return msgspec.structs.replace(
            delta,
            text=delta.text[max(0, len(delta.text) - num_chars) :],
            logprobs=logprobs,
            num_tokens=max(delta.num_tokens, sent.tokens),
            num_chars=max(delta.num_chars, sent.chars),
        )

    def _end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return b"".join((self._id_line(), self._before_choices, b"]", self._with_usage(), DONE))

    def _id_line(self) -> bytes:
        if not self._has_ids:
            return b""
        return f"id: {self._call_id}:{'/'.join(self._sent)}\n".encode()

    def _first_text(self, delta: Delta) -> str:
        self._begun[delta.choice] = True
        return self._echo[delta.choice] + delta.text if self._echo else delta.text

    def _full_end(self, delta: Delta) -> bytes:
        logprobs = self._logprobs.part(delta.choice, delta.logprobs) if delta.logprobs else None
        end = b'%b,"logprobs":%b,"finish_reason":%b%b}' % (
            self._after_text,
            _encode(logprobs),
            _encode(delta.finish_reason),
            b',"finish_details":' + _encode(_details(delta.detail)) if delta.detail else b"",
        )
        return end + (b"]" + self._with_usage() if self._continuous_usage else self._after_choices)

    def _with_usage(self) -> bytes:
        return b',"usage":%b}\n\n' % _encode(self._usage())


class Whole(Answer):
    """One completion object."""

    def __init__(self, call: Call, token_text: Texts) -> None:
        super().__init__(call, token_text)
        self._texts: list[list[str]] = [[text] for text in self._echo] or [[] for _ in self._num_tokens]
        self._finish_reasons: list[str | None] = [None] * len(self._texts)
        self._details: list[str] = [""] * len(self._texts)
        self._scores: list[dict[str, list[bytes]]] = [defaultdict(list) for _ in self._texts]
        """Of the log probabilities' lists, as they came: all at once, a long answer's would take seconds."""
        self._has_logprobs = call.request.sampling.logprobs is not None

    def take(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            self._count(delta)
            self._texts[delta.choice].append(delta.text)
            self._finish_reasons[delta.choice] = delta.finish_reason
            self._details[delta.choice] = delta.detail
            if delta.logprobs:
                for name, values in self._logprobs.part(delta.choice, delta.logprobs).items():
                    if values:
                        self._scores[delta.choice][name].append(_encode(values)[1:-1])

    def body(self) -> bytes:
        """After the last delta."""
        choices = [self._choice(index) for index in range(len(self._texts))]
        return _encode(self._head | {"choices": choices, "usage": self._usage()})

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._texts[index])
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._is_chat
            else {"text": text}
        )
        return {
            "index": index,
            **said,
            "logprobs": self._all_scores(index) if self._has_logprobs else None,
            "finish_reason": self._finish_reasons[index],
            **({"finish_details": _details(self._details[index])} if self._details[index] else {}),
        }

    def _all_scores(self, index: int) -> dict[str, msgspec.Raw | None]:
        scores = self._scores[index]
        return {
            name: None if values is None else msgspec.Raw(b"[%b]" % b",".join(scores[name]))
            for name, values in self._logprobs.part(index, []).items()
        }


class _ChatLogprobs:
    def __init__(self, token_text: Texts) -> None:
        self._text = token_text

    def part(self, choice: int, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The log probabilities of some tokens of a choice."""
        content = [
            self._token(entry.token, entry.logprob)
            | {"top_logprobs": [self._token(token, logprob) for token, logprob in entry.alternatives]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, utf8 = self._text(token)
        return {
            "token": text,
            "logprob": max(logprob, MIN_LOGPROB),
            "bytes": None if utf8 is None else list(utf8),
        }


class _CompletionLogprobs:
    def __init__(self, token_text: Texts) -> None:
        self._text = token_text
        self._offsets: dict[int, int] = {}
        """Where the next token's text begins, by choice."""

    def part(self, choice: int, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The log probabilities of some tokens of a choice."""
        tokens = [self._text(entry.token) for entry in entries]
        offsets = [self._offsets.get(choice, 0)]
        for token in tokens:
            offsets.append(offsets[-1] + len(token.text))
        self._offsets[choice] = offsets.pop()
        return {
            "tokens": list(map(token_name, tokens)),
            "token_logprobs": [max(entry.logprob, MIN_LOGPROB) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """Best first, the chosen token always among them."""
        top: dict[str, float] = {}
        for token, logprob in [*entry.alternatives, (entry.token, entry.logprob)]:
            top.setdefault(token_name(self._text(token)), max(logprob, MIN_LOGPROB))
        return top


def token_name(token: TokenText) -> str:
    """What text completions call a token: one that has a part of a character goes by its bytes, as with OpenAI,
    so that no two have the same name."""
    text, utf8 = token
    return text if utf8 is None or utf8 == text.encode() else "bytes:" + repr(utf8)[2:-1]


def _details(detail: str) -> dict[str, str]:
    """Beside the standard finish reason, what really ended the choice."""
    return {"type": detail}


def error(error: ApiError) -> bytes:
    # It may repeat what a header had, which need not be text.
    message = error.message.encode(errors="replace").decode()
    return _encode({"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}})


def error_event(failure: ApiError) -> bytes:
    """What ends a stream that has begun."""
    return b"data: " + error(failure) + b"\n\n"


def model(name: str, created: int, context_tokens: int | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "bucketserve",
        "max_model_len": context_tokens,
    }


def models(names: Sequence[str], created: int, context_tokens: int | None) -> dict[str, Any]:
    return {"object": "list", "data": [model(name, created, context_tokens) for name in names]}
