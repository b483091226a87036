"""The model: turns sequences into tensors, runs one step, and returns the tokens drawn."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triton_backend import budget
from triton_backend.attention import (
    KV,
    DecodeKV,
    DecodePart,
    PrefillKV,
    PrefillPart,
    Probe,
    UnsupportedModel,
)
from triton_backend.cache import KVCache, LayerShape, ladder_tokens
from triton_backend.contract import NewRow
from triton_backend.loader import adopt, config_context
from triton_backend.memory import Grouped
from triton_backend.packed import pack
from triton_backend.sampling import Draws, Pick, draw
from triton_backend.sequence import Sequence

LENGTH_STEP_TOKENS = 16
"""Chunks are padded to a multiple: matrix kernels are generated anew for every size not seen yet, which takes a
third of a short chunk's time."""
WARM_UP_ROWS = 256
"""Rows of the largest step: their logits are part of its peak."""


class OutOfMemory(Exception):
    """The device had no memory for the step; nothing has changed."""


class CacheLost(Exception):
    """The cache could not be arranged; the keys and values of all rows are gone."""


class Runner:
    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_prefill_tokens: int,
        context_tokens: int | None = None,
        kv_budget_bytes: int | None = None,
    ) -> None:
        """`context_tokens` None: what the model's config says; `kv_budget_bytes` None: measured (budget.py).

        Raises UnsupportedModel.
        """
        adopt(model)
        pack(model)
        config = model.config.get_text_config()
        self._model = model
        self.vocabulary = int(config.vocab_size)
        self.context_tokens = config_context(config, context_tokens)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = str(model.device)
        self.out_of_memory_total = 0
        shapes = self._probe()
        bytes_per_token = sum(shape.elements for shape in shapes) * model.dtype.itemsize
        self.layout = Grouped(ladder_tokens(self.context_tokens), bytes_per_token)
        if kv_budget_bytes is None:
            kv_budget_bytes = self._measure(shapes, max_prefill_tokens)
        self.kv_budget_bytes = kv_budget_bytes
        self._cache = self._new_cache(shapes, kv_budget_bytes)

    @property
    def allocated_bytes(self) -> int:
        """KV bytes taken from the device."""
        return self._cache.allocated_bytes

    @torch.inference_mode()
    def arrange(self, rooms: Mapping[int, int], running: Iterable[int]) -> None:
        """Bring the cache to these rows' tokens of room.  Raises CacheLost."""
        try:
            with self._counted():
                self._cache.arrange(rooms, running)
        except Exception as error:
            raise CacheLost(str(error)) from error

    @torch.inference_mode()
    def prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Draws]:
        """Run the prompt tokens `start .. start + length` of each row; draw for those whose prompts end
        there.

        Short of memory, a half of the rows runs after the other.  Raises OutOfMemory when that one row does
        not fit.
        """
        try:
            with self._counted():
                return self._prefill(rows, start, length)
        except OutOfMemory:
            if len(rows) == 1:
                raise
        half = len(rows) // 2
        done, draws = self.prefill(rows[:half], start, length)
        more_done, more_draws = self.prefill(rows[half:], start, length)
        return done + more_done, draws + more_draws

    @torch.inference_mode()
    def decode(self, rows: Iterable[Sequence]) -> tuple[list[Sequence], Draws]:
        """Draw one token for each row of the decode pool.  Raises OutOfMemory."""
        by_number = {row.row: row for row in rows}
        placed = [by_number[row] for group in self._cache.groups for row in group.rows[: group.num_running]]
        tokens = [row.tokens[-1] for row in placed]
        positions = [row.held_tokens - 1 for row in placed]
        inputs = torch.tensor([tokens, positions], device=self._model.device)
        with self._counted():
            kv = DecodeKV(self._decode_parts(positions, inputs[1]))
            logits = self._logits(inputs[0, :, None], inputs[1, :, None], kv)
            return placed, draw(logits, [_pick(row) for row in placed])

    def _prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Draws]:
        end = start + length
        rows = sorted(rows, key=lambda row: self._cache.place(row.row))
        chunks = [row.new.prompt[start:end] for row in rows]
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

    def _decode_parts(self, positions: list[int], at: Tensor) -> list[DecodePart]:
        parts, start = [], 0
        for group in self._cache.groups:
            if group.num_running:
                span = slice(start, start := start + group.num_running)
                parts.append(DecodePart(group, span, at[span], min(positions[span]), max(positions[span])))
        return parts

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
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

    def _new_cache(self, shapes: list[LayerShape], budget_bytes: int) -> KVCache:
        return KVCache(shapes, self.layout, budget_bytes, self._model.dtype, self._model.device)

    def _measure(self, shapes: list[LayerShape], max_prefill_tokens: int) -> int:
        if self._model.device.type != "cuda":
            return budget.cpu_bytes()
        num_rows = min(WARM_UP_ROWS, max_prefill_tokens)
        length = min(self.context_tokens, max_prefill_tokens // num_rows)
        prompt = [0] * length
        rows = [Sequence(NewRow(row, "", 0, "", prompt, index=0, max_tokens=1)) for row in range(num_rows)]
        room = self.layout.room_tokens(length)

        def run() -> None:
            self._cache = self._new_cache(shapes, 2 * num_rows * room * self.layout.bytes_per_token)
            self.arrange({row.row: room for row in rows}, [])
            self.prefill(rows, 0, length)
            self._cache.clear()

        return budget.cuda_bytes(self._model.device, run, len(shapes))


def _pick(row: Sequence) -> Pick:
    banned = row.new.stop_ids if row.index < row.new.min_tokens else []
    return Pick(row.row, row.new.sampling, row.index, banned)
