"""The model: turns sequences into tensors, runs one step, and returns the tokens drawn."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triton_backend.attention import KV, DecodePart, StepKV, StepView
from triton_backend.cache import CacheLost, Group, KVCache, ladder_tokens
from triton_backend.contract import NewRow
from triton_backend.decoder import Decoder, pick
from triton_backend.device import device_of
from triton_backend.headroom import Headroom
from triton_backend.memory import Grouped
from triton_backend.native_attention import decode_view, prefill_view
from triton_backend.packed import pack
from triton_backend.plan import Prefill
from triton_backend.replacement import replace_layers
from triton_backend.sampling import Draws, dearest, draw
from triton_backend.sequence import Sequence
from triton_backend.shortage import OutOfMemory, fitting, halves, is_shortage

SIZE_STEP_TOKENS = 16
"""Larger steps are padded to a multiple: matrix kernels are generated anew for every size not seen yet, which
takes a third of a short chunk's time."""
WARM_UP_ROWS = 256
"""Rows of the largest step: their logits are part of its peak."""


def warm_up_rows(num_rows: int, length: int, vocabulary: int) -> list[Sequence]:
    """Rows with so long a prompt, which together take the most memory when they draw."""
    prompt, samplings = [0] * length, dearest(num_rows, vocabulary)
    return [Sequence(NewRow(at, "", 0, "", prompt, 0, 1, sampling=one)) for at, one in enumerate(samplings)]


class _Span(NamedTuple):
    """Rows of the decode pool, in the first slots of a group."""

    group: Group
    rows: list[Sequence]


class _Part(NamedTuple):
    """What some rows bring to a step."""

    ids: Tensor
    """[rows, positions]"""
    positions: Tensor
    kv: KV
    drawing: list[Sequence]
    drawn_at: list[int]
    """Where each of those draws from, counted through `ids`."""


class Runner:
    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_prefill_tokens: int,
        context_tokens: int | None = None,
        kv_budget_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context_tokens` None: what the model's config says; `kv_budget_bytes`: the most that keys and
        values may take, None: whatever there is room for (headroom.py).

        Raises UnsupportedModel.
        """
        self.model = model
        """What it runs: some of its layers are replaced."""
        self._decoder = decoder = Decoder(model, context_tokens)
        self.vocabulary = decoder.vocabulary
        self.context_tokens = decoder.context_tokens
        self.dtype = str(decoder.dtype).removeprefix("torch.")
        self.device = str(decoder.device)
        self.out_of_memory_total = 0
        pack(model)
        replace_layers(model, self.context_tokens)
        self._decode_view = decode_view(decoder.dtype, decoder.device)
        self._prefill_view = prefill_view(decoder.dtype, decoder.device)
        self.layout = Grouped(ladder_tokens(self.context_tokens), decoder.bytes_per_token)
        self._cache = KVCache(decoder.shapes, self.layout, 0, decoder.dtype, decoder.device)
        device = device_of(self.device)
        headroom = partial(
            Headroom, device, num_layers=len(decoder.shapes), most_bytes=kv_budget_bytes, clock=clock
        )
        workspace_bytes = device.peak_bytes(self._of_most_rows(max_prefill_tokens))
        self._cache.clear()
        device.give_back()
        kv_bytes = headroom(workspace_bytes=workspace_bytes).look(0)
        longest = device.peak_bytes(self._of_most_context(max_prefill_tokens, kv_bytes))
        self._cache.clear()
        device.settle()
        self._headroom = headroom(workspace_bytes=max(workspace_bytes, longest))

    @property
    def kv_budget_bytes(self) -> int:
        """What the rows may hold now; to be asked between steps."""
        return self._headroom.look(self._cache.allocated_bytes)

    @property
    def allocated_bytes(self) -> int:
        """KV bytes taken from the device."""
        return self._cache.allocated_bytes

    @torch.inference_mode()
    def arrange(self, rooms: Mapping[int, int], running: Iterable[int]) -> None:
        """Bring the cache to these rows' tokens of room.  Raises OutOfMemory, CacheLost."""
        self._cache.budget_bytes = self._headroom.kv_bytes
        try:
            with self._counted():
                self._cache.arrange(rooms, running)
        except CacheLost as error:
            self.out_of_memory_total += is_shortage(error.__cause__)
            raise
        self._headroom.give_back()

    @torch.inference_mode()
    def run(self, prefill: Prefill | None, decode: list[Sequence]) -> tuple[list[Sequence], Draws]:
        """One step: a chunk of prompts, and a token for each row of the decode pool, or one of both.  Rows that
        draw, and their draws: of the decode pool those that there was memory for.

        Short of memory, one runs after the other, and then as each does by itself.  Raises OutOfMemory when not
        even one token of one row can be run.
        """
        if prefill and decode:
            try:
                with self._counted():
                    chunk = self._chunk(prefill.rows, prefill.start, prefill.length)
                    return self._step([*chunk, self._newest(self._spans(decode))])
            except OutOfMemory:
                pass
        rows: list[Sequence] = []
        draws = Draws()
        if prefill:
            rows, draws = self.prefill(prefill.rows, prefill.start, prefill.length)
        if decode:
            more_rows, more_draws = self.decode(decode)
            rows, draws = rows + more_rows, draws + more_draws
        return rows, draws

    @torch.inference_mode()
    def prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Draws]:
        """Run the prompt tokens `start .. start + length` of each row; draw for those whose prompts end
        there.

        Short of memory, one half runs after the other: of the rows, then of a single row's tokens.  Raises
        OutOfMemory when not even one token of one row can be run.
        """
        length = min(length, max(row.prompt_tokens for row in rows) - start)
        try:
            with self._counted():
                return self._step(self._chunk(rows, start, length))
        except OutOfMemory:
            parts = halves(rows, start, length)
            if parts is None:
                raise
        (done, draws), (more_done, more_draws) = (self.prefill(*part) for part in parts)
        return done + more_done, draws + more_draws

    @torch.inference_mode()
    def decode(self, rows: Iterable[Sequence]) -> tuple[list[Sequence], Draws]:
        """Draw one token for each row of the decode pool.  Rows that draw, and their draws.

        Short of memory, one half of the rows runs after the other, and those that there is none for even so draw
        nothing.  Raises OutOfMemory when not even one row can be run.
        """
        return self._decode(self._spans(rows))

    def _decode(self, spans: list[_Span]) -> tuple[list[Sequence], Draws]:
        num_rows = sum(len(span.rows) for span in spans)
        try:
            with self._counted():
                return self._step([self._newest(spans)])
        except OutOfMemory:
            if num_rows == 1:
                raise
        done = fitting(partial(self._decode, half) for half in _halves(spans, num_rows // 2))
        return [row for some, _ in done for row in some], sum((draws for _, draws in done), Draws())

    def _step(self, parts: list[_Part]) -> tuple[list[Sequence], Draws]:
        """All in one row of positions, whichever rows they are of."""
        ids = torch.cat([part.ids.flatten() for part in parts])
        positions = torch.cat([part.positions.flatten() for part in parts])
        size = len(ids)
        if size > SIZE_STEP_TOKENS:
            padding = -size % SIZE_STEP_TOKENS
            ids, positions = (nn.functional.pad(tensor, (0, padding)) for tensor in (ids, positions))
        drawing, drawn_at, start = [], [], 0
        for part in parts:
            drawing += part.drawing
            drawn_at += [start + at for at in part.drawn_at]
            start += part.ids.numel()
        kv = StepKV([StepView(part.kv, *part.ids.shape) for part in parts])
        # A step that draws nothing keeps one position, for the model to have something.
        kept = torch.tensor(drawn_at or [0], device=ids.device)
        logits = self._decoder.logits(ids[None], positions[None], kv, kept)[0]
        if not drawing:
            return [], Draws()
        return drawing, draw(logits, [pick(row) for row in drawing])

    def _newest(self, spans: list[_Span]) -> _Part:
        rows = [row for span in spans for row in span.rows]
        positions = [row.held_tokens - 1 for row in rows]
        inputs = torch.tensor([[row.tokens[-1] for row in rows], positions], device=self._decoder.device)
        kv = self._decode_view(_decode_parts(spans, positions, inputs[1]))
        return _Part(inputs[0, :, None], inputs[1, :, None], kv, rows, list(range(len(rows))))

    def _chunk(self, rows: list[Sequence], start: int, length: int) -> list[_Part]:
        """Each row's tokens, as many as it has: nothing is padded."""
        parts = []
        for row in rows:
            chunk = row.new.prompt[start : start + length]
            ids = torch.tensor([chunk], device=self._decoder.device)
            positions = torch.arange(start, start + len(chunk), device=ids.device)[None]
            is_done = row.prompt_tokens <= start + length
            drawing, drawn_at = ([row], [len(chunk) - 1]) if is_done else ([], [])
            kv = self._prefill_view(self._cache.alone(row.row), start)
            parts.append(_Part(ids, positions, kv, drawing, drawn_at))
        return parts

    def _spans(self, rows: Iterable[Sequence]) -> list[_Span]:
        """These rows, which are all of the decode pool, as they lie."""
        by_number = {row.row: row for row in rows}
        return [
            _Span(group, [by_number[row] for row in group.rows[: group.num_running]])
            for group in self._cache.groups
            if group.num_running
        ]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_shortage(error):
                raise
            self.out_of_memory_total += 1
            raise OutOfMemory(str(error)) from error

    def _of_most_rows(self, max_prefill_tokens: int) -> Callable[[], object]:
        """The largest step in which as many rows as may be draw: their logits are part of it."""
        num_rows = min(WARM_UP_ROWS, max_prefill_tokens)
        return self._step_of(num_rows, 0, min(max_prefill_tokens // num_rows, self.context_tokens))

    def _of_most_context(self, max_prefill_tokens: int, kv_bytes: int) -> Callable[[], object]:
        """The largest step of a row that is as long as may be; no longer than these bytes hold it, as it could not
        come in, and to write it takes that memory."""
        ladder = self.layout.ladder_tokens
        at = bisect_right(ladder, kv_bytes // self.layout.bytes_per_token)
        end = ladder[max(0, at - 1)]
        length = min(max_prefill_tokens, end)
        return self._step_of(1, end - length, length)

    def _step_of(self, num_rows: int, start: int, length: int) -> Callable[[], object]:
        """The chunk `start .. start + length` of so many rows, for which there is room."""
        rows = warm_up_rows(num_rows, start + length, self.vocabulary)
        rooms = dict.fromkeys(range(num_rows), self.layout.room_tokens(start + length))
        self._cache.budget_bytes = 2 * sum(rooms.values()) * self.layout.bytes_per_token
        self._cache.arrange(rooms, [])
        return partial(self.prefill, rows, start, length)


def _halves(spans: list[_Span], size: int) -> tuple[list[_Span], list[_Span]]:
    """The first `size` rows, and the rest."""
    one, other = [], []
    for group, rows in spans:
        first, rest = rows[:size], rows[size:]
        size -= len(first)
        if first:
            one.append(_Span(group, first))
        if rest:
            other.append(_Span(group.part(len(first), len(rows)), rest))
    return one, other


def _decode_parts(spans: list[_Span], positions: list[int], at: Tensor) -> list[DecodePart]:
    parts, start = [], 0
    for group, rows in spans:
        span = slice(start, start := start + len(rows))
        parts.append(DecodePart(group, span, at[span], min(positions[span]), max(positions[span])))
    return parts
