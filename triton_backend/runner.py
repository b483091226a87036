"""The model: turns sequences into tensors, runs one step, and returns the tokens drawn."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triton_backend.attention import (
    KV,
    DecodePart,
    PrefillKV,
    PrefillPart,
    Probe,
    UnsupportedModel,
)
from triton_backend.cache import CacheLost, Group, KVCache, LayerShape, ladder_tokens
from triton_backend.contract import NewRow
from triton_backend.device import device_of
from triton_backend.headroom import Headroom
from triton_backend.loader import adopt, config_context
from triton_backend.memory import Grouped
from triton_backend.native_attention import decode_view
from triton_backend.native_layers import replace_layers
from triton_backend.packed import pack
from triton_backend.sampling import Draws, Pick, draw
from triton_backend.sequence import Sequence
from triton_backend.shortage import OutOfMemory, halves, is_shortage

LENGTH_STEP_TOKENS = 16
"""Longer chunks are padded to a multiple: matrix kernels are generated anew for every size not seen yet, which
takes a third of a short chunk's time."""
WARM_UP_ROWS = 256
"""Rows of the largest step: their logits are part of its peak."""


class _Span(NamedTuple):
    """Rows of the decode pool, in the first slots of a group."""

    group: Group
    rows: list[Sequence]


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
        adopt(model)
        pack(model)
        config = model.config.get_text_config()
        self._model = model
        self.vocabulary = int(config.vocab_size)
        self.context_tokens = config_context(config, context_tokens)
        replace_layers(model, self.context_tokens)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = str(model.device)
        self.out_of_memory_total = 0
        self._decode_view = decode_view(model.dtype, model.device)
        shapes = self._probe()
        bytes_per_token = sum(shape.elements for shape in shapes) * model.dtype.itemsize
        self.layout = Grouped(ladder_tokens(self.context_tokens), bytes_per_token)
        self._cache = KVCache(shapes, self.layout, 0, model.dtype, model.device)
        device = device_of(self.device)
        workspace_bytes = max(device.peak_bytes(step) for step in self._largest_steps(max_prefill_tokens))
        self._cache.clear()
        device.settle()
        self._headroom = Headroom(
            device,
            workspace_bytes=workspace_bytes,
            num_layers=len(shapes),
            most_bytes=kv_budget_bytes,
            clock=clock,
        )

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
    def prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Draws]:
        """Run the prompt tokens `start .. start + length` of each row; draw for those whose prompts end
        there.

        Short of memory, one half runs after the other: of the rows, then of a single row's tokens.  Raises
        OutOfMemory when not even one token of one row can be run.
        """
        length = min(length, max(row.prompt_tokens for row in rows) - start)
        try:
            with self._counted():
                return self._prefill(rows, start, length)
        except OutOfMemory:
            parts = halves(rows, start, length)
            if parts is None:
                raise
        (done, draws), (more_done, more_draws) = (self.prefill(*part) for part in parts)
        return done + more_done, draws + more_draws

    @torch.inference_mode()
    def decode(self, rows: Iterable[Sequence]) -> tuple[list[Sequence], Draws]:
        """Draw one token for each row of the decode pool.

        Short of memory, one half of the rows runs after the other.  Raises OutOfMemory when not even one
        row can be run.
        """
        by_number = {row.row: row for row in rows}
        return self._decode(
            [
                _Span(group, [by_number[row] for row in group.rows[: group.num_running]])
                for group in self._cache.groups
                if group.num_running
            ]
        )

    def _decode(self, spans: list[_Span]) -> tuple[list[Sequence], Draws]:
        rows = [row for span in spans for row in span.rows]
        try:
            with self._counted():
                return rows, self._decode_once(spans, rows)
        except OutOfMemory:
            if len(rows) == 1:
                raise
        one, other = _halves(spans, len(rows) // 2)
        done, draws = self._decode(one)
        more_done, more_draws = self._decode(other)
        return done + more_done, draws + more_draws

    def _decode_once(self, spans: list[_Span], rows: list[Sequence]) -> Draws:
        tokens = [row.tokens[-1] for row in rows]
        positions = [row.held_tokens - 1 for row in rows]
        inputs = torch.tensor([tokens, positions], device=self._model.device)
        kv = self._decode_view(_decode_parts(spans, positions, inputs[1]))
        logits = self._logits(inputs[0, :, None], inputs[1, :, None], kv)
        return draw(logits, [_pick(row) for row in rows])

    def _prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Draws]:
        end = start + length
        rows = sorted(rows, key=lambda row: self._cache.place(row.row))
        chunks = [row.new.prompt[start:end] for row in rows]
        if length > LENGTH_STEP_TOKENS:
            length = -(-length // LENGTH_STEP_TOKENS) * LENGTH_STEP_TOKENS
        ids = torch.tensor([chunk + [0] * (length - len(chunk)) for chunk in chunks], device=self._model.device)
        positions = torch.arange(start, start + length, device=ids.device).clamp_(max=self.context_tokens - 1)
        positions = positions.expand_as(ids)
        last = torch.tensor([[len(chunk) - 1] for chunk in chunks], device=ids.device)
        logits = self._logits(ids, positions, PrefillKV(self._prefill_parts(rows, start, length), start), last)
        done = [at for at, row in enumerate(rows) if row.prompt_tokens <= end]
        if not done:
            return [], Draws()
        if len(done) < len(rows):
            logits = logits[done]
        return [rows[at] for at in done], draw(logits, [_pick(rows[at]) for at in done])

    def _logits(self, ids: Tensor, positions: Tensor, kv: KV, last: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] after positions `last` [rows, 1] of `ids` [rows, length], or its only one."""
        options: dict[str, Tensor] = {} if last is None else {"logits_to_keep": last}
        logits: Tensor = self._model(
            input_ids=ids, position_ids=positions, use_cache=False, kv=kv, **options
        ).logits
        if last is not None and logits.shape[1] > 1:  # The model's class knows no logits_to_keep.
            return logits.take_along_dim(last[:, :, None], 1)[:, 0]
        return logits[:, 0]

    def _prefill_parts(self, rows: list[Sequence], start: int, length: int) -> list[PrefillPart]:
        places = [self._cache.place(row.row) for row in rows]
        parts, at = [], 0
        for group in self._cache.groups:
            slots = [place.slot for place in places if place.capacity == group.capacity]
            if slots:
                span = slice(at, at := at + len(slots))
                index = torch.tensor(slots, device=self._model.device)
                parts.append(PrefillPart(span, group, index, min(length, group.capacity - start)))
        return parts

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_shortage(error):
                raise
            self.out_of_memory_total += 1
            raise OutOfMemory(str(error)) from error

    @torch.inference_mode()
    def _probe(self) -> list[LayerShape]:
        """What each layer keeps, from a dry run of one token."""
        probe = Probe()
        token = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        self._logits(token, token, probe)
        if sorted(probe.shapes) != list(range(len(probe.shapes))) or not probe.shapes:
            raise UnsupportedModel("not all its layers keep keys and values; choose a model with attention only")
        return [probe.shapes[layer] for layer in range(len(probe.shapes))]

    def _largest_steps(self, max_prefill_tokens: int) -> Iterator[Callable[[], object]]:
        """Those of the most rows, whose logits are part of it, and of the most context."""
        num_rows = min(WARM_UP_ROWS, max_prefill_tokens)
        longest = min(max_prefill_tokens, self.context_tokens)
        most_rows = num_rows, 0, min(max_prefill_tokens // num_rows, longest)
        most_context = 1, self.context_tokens - longest, longest
        for num_rows, start, length in (most_rows, most_context):
            prompt = [0] * (start + length)
            rows = [Sequence(NewRow(row, "", 0, "", prompt, index=0, max_tokens=1)) for row in range(num_rows)]
            rooms = dict.fromkeys(range(num_rows), self.layout.room_tokens(len(prompt)))
            self._cache.budget_bytes = 2 * sum(rooms.values()) * self.layout.bytes_per_token
            self._cache.clear()
            self._cache.arrange(rooms, [])
            yield partial(self.prefill, rows, start, length)


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


def _pick(row: Sequence) -> Pick:
    banned = row.new.stop_ids if row.index < row.new.min_tokens else []
    return Pick(row.row, row.new.sampling, row.index, banned)
