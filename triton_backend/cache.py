"""KV memory in groups: rows of one capacity lie side by side in one tensor per layer.

The ledger decides how much room each row has and the cache follows it (`arrange`), so what is counted and
what is allocated cannot drift.  Within a group rows are compact and those in the decode pool come first, so a
decode step reads one slice of each tensor and copies nothing.

A group may own more slots than it has rows, so that rows come and go without copies; such slack is the first
thing given up when another group grows.  Tensors are resized one by one: besides the budget, at most one
layer of the groups concerned exists twice for a moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from triton_backend import pages
from triton_backend.memory import Grouped, OverBudget


def ladder_tokens(context_tokens: int) -> tuple[int, ...]:
    """Capacities of groups: 64, 96, 128, 192, 256 ... up to the context.

    Two steps an octave waste a seventh of a row's room on average and a third at worst, and copy a row once
    while it grows by two fifths.  Finer steps waste less, but each group costs attention calls of its own in
    every layer.
    """
    steps = [64]
    while steps[-1] < context_tokens:
        steps.append(steps[-1] * 3 // 2 if len(steps) % 2 else steps[-2] * 2)
    return (*steps[:-1], context_tokens)


class CacheLost(Exception):
    """The cache could not be arranged; the keys and values of all rows are gone."""


class LayerShape(NamedTuple):
    """What one layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim)


class Place(NamedTuple):
    """Where a row lies."""

    capacity: int
    slot: int


@dataclass(slots=True)
class Group:
    """Rows of `capacity` tokens of room."""

    capacity: int
    rows: list[int] = field(default_factory=list)
    """By slot; the slots after them are slack."""
    num_running: int = 0
    """So many rows, the first ones, are in the decode pool."""
    num_slots: int = 0
    tensors: list[Tensor] = field(default_factory=list)
    """Keys and values by turns, layer by layer: [slots, kv heads, capacity, head dim]."""

    def keys(self, layer: int) -> Tensor:
        return self.tensors[2 * layer]

    def values(self, layer: int) -> Tensor:
        return self.tensors[2 * layer + 1]

    def part(self, first: int, last: int) -> "Group":
        """The slots `first .. last` as a group of their own, in the same memory."""
        return Group(self.capacity, self.rows[first:last], tensors=[tensor[first:last] for tensor in self.tensors])


@dataclass(slots=True)
class _Move:
    """Rows that go from one group's slots to another's.  A new row has no source."""

    source: int | None
    target: int
    from_slots: list[int] = field(default_factory=list)
    to_slots: list[int] = field(default_factory=list)


class KVCache:
    def __init__(
        self,
        shapes: list[LayerShape],
        layout: Grouped,
        budget_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._tensor_shapes = [(heads, dim) for heads, *dims in shapes for dim in dims]
        self._layout = layout
        self.budget_bytes = budget_bytes
        """What `arrange` keeps to; it may be changed between two calls."""
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._groups: dict[int, Group] = {}
        self._places: dict[int, Place] = {}
        self._arranged: tuple[dict[int, int], set[int]] = {}, set()

    @property
    def groups(self) -> list[Group]:
        """Those with rows, by capacity."""
        return [group for _, group in sorted(self._groups.items()) if group.rows]

    @property
    def allocated_bytes(self) -> int:
        return self._bytes({capacity: group.num_slots for capacity, group in self._groups.items()})

    def alone(self, row: int) -> Group:
        """The row's slot as a group of its own, in the same memory."""
        capacity, slot = self._places[row]
        return self._groups[capacity].part(slot, slot + 1)

    def arrange(self, rooms: Mapping[int, int], running: Iterable[int]) -> None:
        """Give each row its tokens of room, put the running ones in front, and forget all other rows.

        What a row wrote stays with it; a new row finds zeros, so that nothing it is masked from can be a NaN.
        Raises OverBudget, or what is raised without memory, and then nothing has changed; or CacheLost.
        """
        wanted = dict(rooms), set(running)
        if wanted == self._arranged and self.allocated_bytes <= self.budget_bytes:
            return
        targets = self._targets(*wanted)
        num_slots = self._num_slots(targets)
        self._ask_for(num_slots)
        try:
            self._apply(targets, num_slots)
        except Exception as error:
            self.clear()
            raise CacheLost(str(error)) from error
        for capacity, group in self._groups.items():
            group.num_running = len(wanted[1].intersection(targets[capacity]))
        self._arranged = wanted

    def clear(self) -> None:
        self._groups, self._places, self._arranged = {}, {}, ({}, set())

    def _targets(self, rooms: dict[int, int], running: set[int]) -> dict[int, list[int]]:
        """The rows of each group, by slot."""
        members: dict[int, list[int]] = {capacity: [] for capacity in self._groups}
        for row, capacity in rooms.items():
            members.setdefault(capacity, []).append(row)
        targets = {}
        for capacity, rows in members.items():
            old = self._groups[capacity].rows if capacity in self._groups else []
            front = [row for row in rows if row in running]
            targets[capacity] = _settle(old, front, [row for row in rows if row not in running])
        return targets

    def _num_slots(self, targets: dict[int, list[int]]) -> dict[int, int]:
        """Slots of each group: what it owns, or its need and a quarter, less what the budget forbids."""
        num_slots, cost = {}, {}
        for capacity, rows in targets.items():
            owned = self._groups[capacity].num_slots if capacity in self._groups else 0
            grows = len(rows) > owned
            num_slots[capacity] = len(rows) * 5 // 4 if grows else owned
            # Trimming copies the rows that stay, except in a group that is about to be copied anyway.
            cost[capacity] = 0 if grows else len(rows) * capacity
        for capacity in sorted(cost, key=cost.__getitem__):
            if self._bytes(num_slots) <= self.budget_bytes:
                return num_slots
            num_slots[capacity] = len(targets[capacity])
        if self._bytes(num_slots) > self.budget_bytes:
            raise OverBudget(self._bytes(num_slots), self.budget_bytes)
        return num_slots

    def _ask_for(self, num_slots: dict[int, int]) -> None:
        """Take what the groups will grow by, and a copy of one tensor of each, and put it back: without memory
        it is better to fail before anything has moved."""
        owned = {capacity: group.num_slots for capacity, group in self._groups.items()}
        resized = {at: slots for at, slots in num_slots.items() if slots != owned.get(at, 0)}
        growth_bytes = self._bytes(num_slots) - self._bytes(owned)
        if growth_bytes > 0:
            needed_bytes = growth_bytes + self._bytes(resized) // len(self._tensor_shapes)
            pages.empty((needed_bytes // self._empty.element_size(),), like=self._empty)

    def _apply(self, targets: dict[int, list[int]], num_slots: dict[int, int]) -> None:
        places = {
            row: Place(capacity, slot) for capacity, rows in targets.items() for slot, row in enumerate(rows)
        }
        moves = self._moves(places)
        for capacity in targets.keys() - self._groups.keys():
            empty = [self._empty.new_empty(0, heads, capacity, dim) for heads, dim in self._tensor_shapes]
            self._groups[capacity] = Group(capacity, tensors=empty)
        for at in range(len(self._tensor_shapes)):
            self._apply_to_tensor(at, moves, num_slots)
        for capacity, rows in targets.items():
            self._groups[capacity].rows = rows
            self._groups[capacity].num_slots = num_slots[capacity]
        self._groups = {capacity: group for capacity, group in self._groups.items() if group.num_slots}
        self._places = places

    def _moves(self, places: dict[int, Place]) -> list[_Move]:
        moves: dict[tuple[int | None, int], _Move] = {}
        for row, (capacity, slot) in places.items():
            old = self._places.get(row)
            if old == (capacity, slot):
                continue
            source = old.capacity if old else None
            move = moves.setdefault((source, capacity), _Move(source, capacity))
            move.to_slots.append(slot)
            if old:
                move.from_slots.append(old.slot)
        return list(moves.values())

    def _apply_to_tensor(self, at: int, moves: list[_Move], num_slots: dict[int, int]) -> None:
        # All rows that move are lifted out before any tensor changes: one's slot may be another's target.
        lifted = [
            self._groups[move.source].tensors[at][move.from_slots] if move.source is not None else None
            for move in moves
        ]
        for capacity, group in self._groups.items():
            if num_slots[capacity] != group.num_slots:
                group.tensors[at] = _resized(group.tensors[at], num_slots[capacity])
        for move, rows in zip(moves, lifted, strict=True):
            tensor = self._groups[move.target].tensors[at]
            width = 0
            if rows is not None:
                width = min(rows.shape[2], move.target)
                tensor[move.to_slots, :, :width] = rows[:, :, :width]
            tensor[move.to_slots, :, width:] = 0

    def _bytes(self, num_slots: Mapping[int, int]) -> int:
        return sum(map(int.__mul__, num_slots, num_slots.values())) * self._layout.bytes_per_token


def _settle(old: list[int], front: list[int], back: list[int]) -> list[int]:
    """`front`, then `back`, each row in its old slot where that is possible."""
    halves = [set(front)] * len(front) + [set(back)] * len(back)
    kept = [row if row in half else None for row, half in zip(old, halves, strict=False)]
    kept += [None] * (len(halves) - len(kept))
    staying = set(kept)
    strays = iter([row for row in (*front, *back) if row not in staying])
    return [next(strays) if row is None else row for row in kept]


def _resized(tensor: Tensor, num_slots: int) -> Tensor:
    num_kept = min(num_slots, tensor.shape[0])
    resized = pages.empty((num_slots, *tensor.shape[1:]), like=tensor)
    resized[:num_kept] = tensor[:num_kept]
    return resized
