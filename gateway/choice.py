"""One choice's growing answer: tokens in, text that is safe to send out."""

from collections.abc import Sequence

from gateway.ports import Tokenizer
from gateway.request import Delta, FinishReason, TokenLogprob, Work


class StopStrings:
    """Finds the first stop string in a text that arrives piece by piece, and never lets a part of one through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text now known to precede any stop string, and whether one was found."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self._held = ""
            return text[:found], True
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for size in range(longest, 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0


class Choice:
    """Everything generated for one ticket, whatever attempts it took.

    An answer's text goes on after its prompt's, a chat's too: a decoder that drops a space at a text's start keeps
    the one between them.  After a template that ends in plain text ("[/INST]") such a chat's answer begins with a
    space, as it does with vLLM: the model drew it.
    """

    def __init__(self, number: int, work: Work, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.num_chars = 0
        self._detokenizer = tokenizer.detokenizer(work.prompt)
        self._stops = StopStrings(stops)
        self._stop_ids = frozenset(work.stop_ids)
        self._min_tokens = work.min_tokens
        self._logprobs: list[TokenLogprob] | None = None if work.sampling.logprobs is None else []
        self.is_finished = False
        self._unsent = 0
        """Tokens whose delta is still to come: their text is held back."""

    def push(self, token: int, logprob: TokenLogprob | None) -> Delta | None:
        """The delta that this token completes, if any; it has a finish reason if a stop string is complete.

        One that ends the row counts and has its log probability, and no text.  Below `min_tokens` no engine draws
        one."""
        self.tokens.append(token)
        self._unsent += 1
        if self._logprobs is not None and logprob is not None:
            self._logprobs.append(logprob)
        piece = "" if token in self._stop_ids else self._detokenizer.step(token)
        if len(self.tokens) <= self._min_tokens:
            return self._delta(piece, None)
        text, stopped = self._stops.feed(piece)
        return self._delta(text, FinishReason.STOP if stopped else None)

    def end(self, reason: FinishReason, detail: str = "") -> Delta:
        """The last delta, after the row ended."""
        text, stopped = self._stops.feed(self._detokenizer.flush())
        if not stopped:
            text += self._stops.flush()
        return self._last(text, FinishReason.STOP, "") if stopped else self._last(text, reason, detail)

    def _delta(self, text: str, reason: FinishReason | None) -> Delta | None:
        if not text and reason is None and not self._logprobs:
            return None
        return self._last(text, reason, "")

    def _last(self, text: str, reason: FinishReason | None, detail: str) -> Delta:
        tokens = self.tokens[len(self.tokens) - self._unsent :]
        self._unsent = 0
        self.is_finished = reason is not None
        self.num_chars += len(text)
        logprobs, self._logprobs = self._logprobs, None if self._logprobs is None else []
        return Delta(self.number, text, tokens, logprobs, reason, len(self.tokens), self.num_chars, detail)
