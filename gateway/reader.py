"""Parses the bodies of requests, large ones in a process of its own.

A JSON decoder holds the interpreter until it is done.  A body of some MB that is all escapes or all numbers takes
it tens of milliseconds, in which no stream would get a token, whichever thread it runs in.

Started as a program, this module is that process: questions come in at its standard input until that ends.
"""

import asyncio
import contextlib
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from struct import Struct
from subprocess import PIPE, Popen
from typing import BinaryIO

import msgspec

from gateway.errors import BadRequest, Unavailable, context_exceeded
from gateway.openai import parse
from gateway.request import Request

LARGE_BYTES = 2**18
"""A smaller body takes some milliseconds at most."""
PATIENCE_S = 30.0
"""Far longer than a body of the greatest size that may be allowed takes."""
_HEAD = Struct("<BqqQ")
"""Of a question: kind, vocabulary, limit in tokens, bytes that follow."""
_SIZE = Struct("<Q")
"""Of an answer."""


class Kind(IntEnum):
    CHAT = 0
    COMPLETION = 1


_PARSERS: dict[Kind, Callable[[bytes, int], Request]] = {Kind.CHAT: parse.chat, Kind.COMPLETION: parse.completion}


class _Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    message: str
    param: str | None
    code: str | None


class _Parsed(msgspec.Struct, frozen=True, tag="parsed"):
    request: Request


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Parsed | _Refusal).decode


class Reader:
    def __init__(self, vocabulary: int) -> None:
        """Token ids must lie below `vocabulary`."""
        self._vocabulary = vocabulary
        self._process: Popen[bytes] | None = None
        """Started when there is a large body, and again after it has died."""
        self._thread = ThreadPoolExecutor(1, "reader")

    @property
    def pid(self) -> int | None:
        """The process's, once there is one."""
        return None if self._process is None else self._process.pid

    async def read(self, kind: Kind, body: bytes, limit_tokens: int | None) -> Request:
        """`limit_tokens` is what prompt and answer may have together, if that is known.

        Raises BadRequest, and Unavailable if the process died over it.
        """
        if len(body) < LARGE_BYTES:
            return _PARSERS[kind](body, self._vocabulary)
        head = _HEAD.pack(kind, self._vocabulary, limit_tokens or 0, len(body))
        # A client that goes away does not stop the thread, so nobody gets an answer that is another's.
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, head, body)
        if answer is None:
            raise Unavailable("The body could not be read; please try again.", retry_after_s=1.0)
        found: _Parsed | _Refusal = _decode(answer)
        if isinstance(found, _Refusal):
            raise BadRequest(found.message, param=found.param, code=found.code)
        return found.request

    async def aclose(self) -> None:
        if (process := self._process) is not None:
            # A question that the thread is at would hold it for as long as it takes.
            process.kill()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        self._thread.shutdown(wait=False)

    def _ask(self, head: bytes, body: bytes) -> bytes | None:
        """The answer; None if there is none.  In the thread, so that one question follows the other."""
        try:
            return _exchange(self._running(), head, body)
        except (OSError, struct.error):
            self._end()
            return None

    def _running(self) -> "Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._end()
            # In a session of its own, so that a terminal's interrupt ends only us, in order.  Python's own way to
            # start a process (vfork) passes by gRPC's fork handlers, which uvloop's does not.
            argv = (sys.executable, "-m", __name__)
            self._process = Popen(argv, stdin=PIPE, stdout=PIPE, start_new_session=True)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # What was not written goes nowhere.
            with contextlib.suppress(OSError):
                process.communicate()


def _exchange(process: "Popen[bytes]", head: bytes, body: bytes) -> bytes:
    """Raises OSError or struct.error if the process dies over it, as it has to after PATIENCE_S."""
    assert process.stdin is not None and process.stdout is not None, "started with pipes"
    patience = threading.Timer(PATIENCE_S, process.kill)
    patience.start()
    try:
        process.stdin.write(head)
        process.stdin.write(body)
        process.stdin.flush()
        (size,) = _SIZE.unpack(process.stdout.read(_SIZE.size))
        answer = process.stdout.read(size)
    finally:
        patience.cancel()
    if len(answer) < size:
        raise BrokenPipeError
    return answer


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions."""
    while head := questions.read(_HEAD.size):
        kind, vocabulary, limit_tokens, size = _HEAD.unpack(head)
        answer = _answer(Kind(kind), questions.read(size), vocabulary, limit_tokens)
        answers.write(_SIZE.pack(len(answer)) + answer)
        answers.flush()


def _answer(kind: Kind, body: bytes, vocabulary: int, limit_tokens: int) -> bytes:
    try:
        request = _PARSERS[kind](body, vocabulary)
        _check_size(request, limit_tokens)
    except BadRequest as refused:
        return _encode(_Refusal(refused.message, refused.param, refused.code))
    return _encode(_Parsed(request))


def _check_size(request: Request, limit_tokens: int) -> None:
    """A million token ids or messages would hold up whoever reads the answer, too.  Raises BadRequest."""
    if not limit_tokens:
        return
    longest = max((len(prompt) for prompt in request.prompts if isinstance(prompt, list)), default=0)
    if longest >= limit_tokens:
        raise context_exceeded(f"{longest} tokens", "prompt", limit_tokens)
    # No template makes less than a token of a message.
    if len(request.messages) >= limit_tokens:
        raise context_exceeded(f"{len(request.messages)} messages", "messages", limit_tokens)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
