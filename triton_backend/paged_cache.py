"""KV memory in blocks: a row owns as many as its room needs, wherever they lie in the pool.

The ledger decides how much room each row has and the cache follows it (`arrange`).  The pool is one tensor of keys
and one of values a layer, all of it allocated from the start; `resize` makes them anew, layer by layer.

Block 0 is nobody's: padding writes there.  A row's first block is its name on the device, shared with no other
live row.  A block may be given away while a step that was started still writes to it: the next owner's steps come
after that one on the device, and it reads nothing that it did not write.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_backend.cache import LayerShape
from triton_backend.memory import OverBudget, Paged

BLOCK_TOKENS = 64
"""Half a block of a row is empty on average.  A block is what the attention kernel takes in one piece."""


class PagedCache:
    def __init__(
        self,
        shapes: list[LayerShape],
        layout: Paged,
        budget_bytes: int,
        context_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = layout.block_tokens
        self._block_bytes = layout.block_tokens * layout.bytes_per_token
        self._blocks: dict[int, list[int]] = {}
        self._places: dict[int, int] = {}
        """Each row's line in the table."""
        self._free_places: list[int] = []
        self._table = np.zeros((0, -(-context_tokens // layout.block_tokens)), np.int32)
        self.num_blocks = budget_bytes // self._block_bytes
        """That rows may own."""
        self._free = list(range(self.num_blocks, 0, -1))
        self.newest = torch.zeros(1 + self.num_blocks, dtype=torch.long, device=device)
        """The token that each row drew last, by the row's first block."""
        self._tensors = [
            torch.zeros(1 + self.num_blocks, self.block_tokens, heads, dim, dtype=dtype, device=device)
            for heads, *dims in shapes
            for dim in dims
        ]

    @property
    def allocated_bytes(self) -> int:
        return self.num_blocks * self._block_bytes

    @property
    def max_blocks(self) -> int:
        """Of a row."""
        return self._table.shape[1]

    def keys(self, layer: int) -> Tensor:
        """[blocks, positions, kv heads, key dim]."""
        return self._tensors[2 * layer]

    def values(self, layer: int) -> Tensor:
        """[blocks, positions, kv heads, value dim]."""
        return self._tensors[2 * layer + 1]

    def write(self, layer: int, at: Tensor, key: Tensor, value: Tensor) -> None:
        """Tokens [tokens, kv heads, dim] go to places `at` of the pool, counted through all its blocks."""
        self.keys(layer).flatten(0, 1).index_copy_(0, at, key)
        self.values(layer).flatten(0, 1).index_copy_(0, at, value)

    def read(self, layer: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at such places, [tokens, kv heads, dim] each."""
        return self.keys(layer).flatten(0, 1)[at], self.values(layer).flatten(0, 1)[at]

    def table(self, rows: Iterable[int]) -> NDArray[np.int32]:
        """The blocks of each row, in order: [rows, max_blocks], zeros behind them."""
        return self._table[[self._places[row] for row in rows]]

    def arrange(self, rooms: Mapping[int, int]) -> None:
        """Give each row blocks for its tokens of room, and forget all other rows.  What a row wrote stays with
        it.  Raises OverBudget, and then the rows that were new or grew have what there was."""
        for row in self._blocks.keys() - rooms.keys():
            self._forget(row)
        for row, room in rooms.items():
            if row not in self._blocks:
                self._welcome(row)
            if missing := room // self.block_tokens - len(self._blocks[row]):
                self._grow(row, missing)

    def resize(self, budget_bytes: int) -> None:
        """Make the pool as large as the budget allows; rows keep what they wrote.  All that was read of the cache
        before is void.

        Raises OverBudget, and then nothing has changed; after any other error all rows and all blocks are lost.
        """
        num_blocks = budget_bytes // self._block_bytes
        used = {block for blocks in self._blocks.values() for block in blocks}
        if len(used) > num_blocks:
            raise OverBudget(len(used) * self._block_bytes, budget_bytes)
        unused = (block for block in range(1, num_blocks + 1) if block not in used)
        moves = {block: next(unused) for block in sorted(used) if block > num_blocks}
        try:
            self._resize_tensors(1 + num_blocks, list(moves), list(moves.values()))
        except BaseException:
            self.arrange({})
            self._resize_tensors(1, [], [])
            self._free, self.num_blocks = [], 0
            raise
        for row, blocks in self._blocks.items():
            blocks[:] = [moves.get(block, block) for block in blocks]
            self._table[self._places[row], : len(blocks)] = blocks
        self._free = list(unused)[::-1]
        self.num_blocks = num_blocks

    def _resize_tensors(self, size: int, sources: list[int], targets: list[int]) -> None:
        for at, tensor in enumerate(self._tensors):
            self._tensors[at] = _resized(tensor, size, sources, targets)
        self.newest = _resized(self.newest, size, sources, targets)

    def _welcome(self, row: int) -> None:
        if not self._free_places:
            size = len(self._table)
            grown = np.zeros((max(16, 2 * size), self.max_blocks), np.int32)
            grown[:size] = self._table
            self._free_places = list(range(len(grown) - 1, size - 1, -1))
            self._table = grown
        self._blocks[row], self._places[row] = [], self._free_places.pop()

    def _grow(self, row: int, missing: int) -> None:
        if missing > len(self._free):
            raise OverBudget(missing * self._block_bytes, len(self._free) * self._block_bytes)
        blocks = self._blocks[row]
        new = [self._free.pop() for _ in range(missing)]
        self._table[self._places[row], len(blocks) : len(blocks) + missing] = new
        blocks += new

    def _forget(self, row: int) -> None:
        place = self._places.pop(row)
        self._table[place] = 0
        self._free_places.append(place)
        self._free += self._blocks.pop(row)


def _resized(tensor: Tensor, size: int, sources: list[int], targets: list[int]) -> Tensor:
    resized = tensor.new_zeros(size, *tensor.shape[1:])
    kept = min(size, len(tensor))
    resized[:kept] = tensor[:kept]
    resized[targets] = tensor[sources]
    return resized
