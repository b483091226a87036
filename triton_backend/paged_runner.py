"""The model on a device that runs by itself: steps are started here and read later.

The host never waits to start a step: what the last one drew stays on the device (`PagedCache.newest`), and what
the host knows goes there from pinned memory.  Layers are compiled, and decode steps are CUDA graphs; on a CPU all
runs at once, as it is.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from triton_backend.cache import CacheLost
from triton_backend.decoder import Decoder, pick
from triton_backend.device import device_of
from triton_backend.graphs import CHUNK_TOKENS, PROMPT_TOKENS, ROWS, SEEN_TOKENS, Graphs, padded
from triton_backend.headroom import Headroom
from triton_backend.joint import join
from triton_backend.memory import OverBudget, Paged
from triton_backend.paged_attention import FLASH_TYPES, NewestKV, PackedKV, Span
from triton_backend.paged_cache import BLOCK_TOKENS, PagedCache
from triton_backend.plan import Prefill
from triton_backend.replacement import replace_layers
from triton_backend.runner import WARM_UP_ROWS, warm_up_rows
from triton_backend.sampling import Draws, Pick, Reading, sample, tell
from triton_backend.sequence import Sequence
from triton_backend.shortage import OutOfMemory, fitting, halves, is_shortage

log = logging.getLogger(__name__)

SHRINK, GROWTH = 0.98, 1.1
"""The pool is remade when it should be smaller or larger by so much: each time graphs are recorded anew, and what
others take goes up and down all the time."""


CHUNK_ROWS = 32
"""Prompts in a recorded chunk, at most; fewer than tokens in the smallest."""
BEGINNING_COLUMNS, CHUNK_COLUMNS = 5, 7
ENDS = slice(4, 6)
"""Columns whose padding is their last number: parts that end where the last one did are of no length."""


def chunk_inputs(size: int, *columns: NDArray[np.int64]) -> NDArray[np.int32]:
    """A chunk of prompts in one array [size, columns]: of its tokens ids, positions and places in the pool; the
    tokens whose logits are wanted; where the prompts' parts end, after a zero.  If it does not begin them, also
    where what each sees ends, after a zero, and the places of all that.  Padding belongs to no prompt and is in
    block 0."""
    inputs = np.zeros((size, len(columns)), np.int32)
    for at, column in enumerate(columns):
        inputs[: len(column), at] = column
    for at, ends in enumerate(columns[ENDS], ENDS.start):
        inputs[len(ends) : CHUNK_ROWS + 1, at] = ends[-1]
    return inputs


class Sampled:
    """What a step draws; on its way to the host."""

    def __init__(self, table: Tensor, picks: list[Pick]) -> None:
        self._picks = picks
        self._arrived: torch.cuda.Event | None = None
        if table.is_cuda:
            self._table = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            self._table.copy_(table, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._table = table

    def read(self) -> Draws:
        if self._arrived:
            self._arrived.synchronize()
        return tell(self._table, self._picks)


class Several:
    """What the parts of a step draw."""

    def __init__(self, parts: list[Reading]) -> None:
        self._parts = parts

    def read(self) -> Draws:
        return sum((part.read() for part in self._parts), Draws())


class PagedRunner:
    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_prefill_tokens: int,
        context_tokens: int | None = None,
        kv_budget_bytes: int | None = None,
        block_tokens: int = BLOCK_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context_tokens` None: what the model's config says; `kv_budget_bytes`: the most that keys and
        values may take, None: whatever there is room for (headroom.py).

        Raises UnsupportedModel.
        """
        self._decoder = decoder = Decoder(model, context_tokens)
        self.vocabulary = decoder.vocabulary
        self.context_tokens = decoder.context_tokens
        self.dtype = str(decoder.dtype).removeprefix("torch.")
        self.device = str(decoder.device)
        self.layout = Paged(block_tokens, decoder.bytes_per_token)
        self.out_of_memory_total = 0
        if decoder.device.type == "cuda":
            join(model)
            replace_layers(model, decoder.context_tokens)
            decoder.compile()
        self._graphs: Graphs | None = None
        self._beginnings: Graphs | None = None
        self._chunks: dict[int, Graphs] = {}
        """By tokens; each for any number of tokens seen."""
        workspace_bytes = self._workspace_bytes(max_prefill_tokens)
        device = device_of(self.device)
        device.settle()
        self._headroom = Headroom(
            device,
            workspace_bytes=workspace_bytes,
            num_layers=len(decoder.shapes),
            most_bytes=kv_budget_bytes,
            clock=clock,
        )
        self._cache = self._new_cache(self._headroom.look(0))
        if decoder.device.type == "cuda":
            self._record_graphs()

    @property
    def kv_budget_bytes(self) -> int:
        """What the rows may hold now; to be asked between steps.  A pool that is to grow has grown before it says
        so, one that is to shrink shrinks once they hold less."""
        held_bytes = self._cache.allocated_bytes
        return held_bytes if self._headroom.look(held_bytes) >= SHRINK * held_bytes else self._headroom.kv_bytes

    @property
    def allocated_bytes(self) -> int:
        """KV bytes taken from the device: all there are."""
        return self._cache.allocated_bytes

    @torch.inference_mode()
    def resize(self, kv_budget_bytes: int) -> None:
        """Bring the cache to this size; the next steps are recorded anew.  Raises OverBudget, CacheLost."""
        for graphs in (self._graphs, self._beginnings, *self._chunks.values()):
            if graphs:
                graphs.clear()
        try:
            with self._counted():
                self._cache.resize(kv_budget_bytes)
        except OverBudget:
            raise
        except Exception as error:
            raise CacheLost(str(error)) from error

    @torch.inference_mode()
    def arrange(self, rooms: Mapping[int, int], running: Iterable[int]) -> None:
        """Give these rows blocks for their tokens of room.  Raises CacheLost."""
        try:
            self._cache.arrange(rooms)
        except Exception as error:
            raise CacheLost(str(error)) from error
        held_bytes, wanted_bytes = self._cache.allocated_bytes, self._headroom.kv_bytes
        if not SHRINK * held_bytes <= wanted_bytes <= GROWTH * held_bytes:
            gib = held_bytes / 2**30, wanted_bytes / 2**30
            log.warning("the room for keys and values goes from %.2f to %.2f GiB; steps are recorded anew", *gib)
            self.resize(wanted_bytes)
            self._headroom.give_back()

    def run(self, prefill: Prefill | None, decode: list[Sequence]) -> tuple[list[Sequence], Reading]:
        """Start on a chunk of prompts, then on a token of each running row.  Rows that draw, and their draws: of
        the running ones those that there was memory for.

        Raises OutOfMemory when not even one token of one row can be run.
        """
        started = [self.prefill(prefill.rows, prefill.start, prefill.length)] if prefill else []
        if decode:
            started.append(self.decode(decode))
        if len(started) == 1:
            return started[0]
        (done, first), (more_done, second) = started
        return done + more_done, Several([first, second])

    @torch.inference_mode()
    def prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Reading]:
        """Start on the prompt tokens `start .. start + length` of each row; draw for those whose prompts end
        there.

        Short of memory, one half is started after the other: of the rows, then of a single row's tokens.  Raises
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
        (done, reading), (more_done, more_reading) = (self.prefill(*part) for part in parts)
        return done + more_done, Several([reading, more_reading])

    @torch.inference_mode()
    def decode(self, rows: list[Sequence]) -> tuple[list[Sequence], Reading]:
        """Start on one token for each row.  Rows that draw, and their draws.

        Short of memory, one half of the rows is started after the other, and those that there is none for even so
        draw nothing: what the others drew is on the device already, for their next step to take.  Raises
        OutOfMemory when not even one row can be run.
        """
        try:
            with self._counted():
                return rows, self._decode_once(rows)
        except OutOfMemory:
            if len(rows) == 1:
                raise
        half = len(rows) // 2
        done = fitting(partial(self.decode, part) for part in (rows[:half], rows[half:]))
        return [row for some, _ in done for row in some], Several([reading for _, reading in done])

    @torch.inference_mode()
    def _record_graphs(self) -> None:
        device = self._decoder.device
        self._graphs = Graphs(self._decode, ROWS, 1 + self._cache.max_blocks, device)
        self._graphs.record_all()
        if self._decoder.dtype not in FLASH_TYPES:
            return
        self._beginnings = Graphs(self._chunk, PROMPT_TOKENS, BEGINNING_COLUMNS, device)
        self._beginnings.record_all()
        if not self._beginnings.takes(PROMPT_TOKENS[0]):
            return
        seen = SEEN_TOKENS[: 1 + bisect_left(SEEN_TOKENS, self.context_tokens)]
        for tokens in reversed(CHUNK_TOKENS):
            chunk = partial(self._chunk, tokens=tokens)
            self._chunks[tokens] = Graphs(chunk, seen, CHUNK_COLUMNS, device, beside=self._beginnings)
            self._chunks[tokens].record_all()

    def _decode_once(self, rows: list[Sequence]) -> Sampled:
        positions = np.array([row.held_tokens - 1 for row in rows], np.int32)
        tables = self._cache.table(row.row for row in rows)
        if self._graphs:
            inputs = np.zeros((padded(len(rows), ROWS), 1 + self._cache.max_blocks), np.int32)
            inputs[: len(rows), 0], inputs[: len(rows), 1:] = positions, tables
            logits = self._graphs.run(self._staged(inputs))[: len(rows)]
        else:
            num_blocks = positions.max() // self._cache.block_tokens + 1
            logits = self._decode(self._upload(np.column_stack((positions, tables[:, :num_blocks]))))
        return self._draw(logits, rows, tables[:, 0])

    def _prefill(self, rows: list[Sequence], start: int, length: int) -> tuple[list[Sequence], Reading]:
        chunks = [row.new.prompt[start : start + length] for row in rows]
        lengths = np.array([len(chunk) for chunk in chunks])
        ends = lengths.cumsum()
        at = np.arange(ends[-1])
        row_at = np.repeat(np.arange(len(rows)), lengths)
        positions = at - (ends - lengths)[row_at] + start
        tables = self._cache.table(row.row for row in rows)
        ids, places = np.concatenate(chunks), self._places(tables, row_at, positions)
        done = [at for at, row in enumerate(rows) if row.prompt_tokens <= start + length]
        # A chunk that ends no prompt draws nothing: one position is kept, for the model to have something.
        kept = ends[done or [0]] - 1
        seen = lengths + start
        graphs, size = self._recorded(start, len(rows), len(ids), int(seen.sum()))
        sums = np.array([[0, *ends], [0, *seen.cumsum()]])
        reads = self._all_places(tables, seen) if start else None
        if graphs:
            columns = [ids, positions, places, kept, *(sums[:1] if reads is None else (*sums, reads))]
            logits = graphs.run(self._staged(chunk_inputs(size, *columns)))[: len(kept)]
        else:
            spans = zip((ends - lengths).tolist(), lengths.tolist(), seen.tolist(), strict=True)
            kv = PackedKV(
                self._cache,
                writes=self._upload(places),
                reads=None if reads is None else self._upload(reads),
                ends=self._upload(sums.astype(np.int32)),
                spans=[Span(*span) for span in spans],
            )
            where = self._upload(ids)[None], self._upload(positions)[None]
            logits = self._decoder.logits(*where, kv, self._upload(kept))[0]
        if not done:
            return [], Sampled(logits.new_empty(0, 1), [])
        finished = [rows[at] for at in done]
        return finished, self._draw(logits, finished, tables[done, 0])

    def _recorded(self, start: int, num_rows: int, num_tokens: int, num_seen: int) -> tuple[Graphs | None, int]:
        """Who has recorded such chunks, and the size of what they are given."""
        if start:
            graphs, size = self._chunks.get(padded(num_tokens, CHUNK_TOKENS)), padded(num_seen, SEEN_TOKENS)
        else:
            graphs, size = self._beginnings, padded(num_tokens, PROMPT_TOKENS)
        return (graphs if graphs and graphs.takes(size) and num_rows <= CHUNK_ROWS else None), size

    def _draw(self, logits: Tensor, rows: list[Sequence], first_blocks: NDArray[np.int32]) -> Sampled:
        picks = [pick(row) for row in rows]
        table = sample(logits, picks)
        sampled = Sampled(table, picks)
        # Last: a row that has its token there has run, whatever there is no memory for.  Where there is no telling
        # it is some token: the row may be in the next step before anybody reads this.
        self._cache.newest[self._upload(first_blocks)] = table[:, 0].long().clamp(min=0)
        return sampled

    def _decode(self, inputs: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of NewestKV's inputs: on CUDA, what a graph records."""
        ids = self._cache.newest[inputs[:, 1]]
        return self._decoder.logits(ids[:, None], inputs[:, :1].long(), NewestKV(self._cache, inputs))[:, 0]

    def _chunk(self, inputs: Tensor, tokens: int | None = None) -> Tensor:
        """Logits [CHUNK_ROWS, vocabulary] of `chunk_inputs`, on CUDA what a graph records.  `tokens`: padding
        included, None: a token a line."""
        *own, kept, ends = inputs[:, :BEGINNING_COLUMNS].unbind(1)
        ids, positions, places = (column[:tokens].long() for column in own)
        seen_ends, *reads = inputs[:, BEGINNING_COLUMNS:].unbind(1) or [ends]
        kv = PackedKV(
            self._cache,
            writes=places,
            reads=reads[0].long() if reads else None,
            ends=torch.stack((ends, seen_ends))[:, : CHUNK_ROWS + 1].contiguous(),
        )
        return self._decoder.logits(ids[None], positions[None], kv, kept[:CHUNK_ROWS].long())[0]

    def _places(
        self, tables: NDArray[np.int32], row_at: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where in the pool the rows' positions lie."""
        size = self._cache.block_tokens
        return tables[row_at, positions // size].astype(np.int64) * size + positions % size

    def _all_places(self, tables: NDArray[np.int32], seen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the pool the first tokens of each row lie, row by row."""
        row_at = np.repeat(np.arange(len(seen)), seen)
        return self._places(tables, row_at, np.arange(seen.sum()) - (seen.cumsum() - seen)[row_at])

    def _staged(self, array: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
        """On the host, where the device can fetch it by itself."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self._decoder.device.type == "cuda" else tensor

    def _upload(self, array: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
        return self._staged(array).to(self._decoder.device, non_blocking=True)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_shortage(error):
                raise
            self.out_of_memory_total += 1
            raise OutOfMemory(str(error)) from error

    def _new_cache(self, budget_bytes: int) -> PagedCache:
        decoder = self._decoder
        return PagedCache(
            decoder.shapes, self.layout, budget_bytes, decoder.context_tokens, decoder.dtype, decoder.device
        )

    def _workspace_bytes(self, max_prefill_tokens: int) -> int:
        """What the largest step takes beside the cache: the one of the most rows, whose logits are part of it."""
        num_rows = min(WARM_UP_ROWS, max_prefill_tokens)
        length = min(self.context_tokens, max_prefill_tokens // num_rows)
        rows = warm_up_rows(num_rows, length, self.vocabulary)
        room = self.layout.room_tokens(length + 1)
        self._cache = self._new_cache(num_rows * room * self.layout.bytes_per_token)
        with torch.inference_mode():
            self._cache.arrange({row.row: room for row in rows})
        workspace_bytes = device_of(self.device).peak_bytes(lambda: self.prefill(rows, 0, length)[1].read())
        del self._cache
        return workspace_bytes
