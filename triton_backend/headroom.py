"""How much memory keys and values may take now: it follows what the device has free, while others take and give.

Read between steps, a few times a second.  Of what is free and what is ours, `SHARE` is for keys, values and a
step's workspace; and the copy of one layer that a resize of the cache makes must fit in as well.
"""

from collections.abc import Callable
from math import inf

from triton_backend.device import Device

SHARE = 0.93
"""So that all of it stays within 0.95: the rest is for what a resize copies, and what others take between two
looks."""
REFRESH_S = 0.2
GROWTH = 1.02
"""It shrinks at once, and grows when it is worth it: others' memory goes up and down all the time."""


class Headroom:
    def __init__(
        self,
        device: Device,
        *,
        workspace_bytes: int,
        num_layers: int,
        most_bytes: int | None,
        clock: Callable[[], float],
    ) -> None:
        """`workspace_bytes`: what a step takes at most; `most_bytes` None: as much as there is."""
        self._device = device
        self._workspace_bytes = workspace_bytes
        self._num_layers = num_layers
        self._most_bytes = inf if most_bytes is None else most_bytes
        self._clock = clock
        self._read_s = -inf
        self.kv_bytes = 0
        """As last read."""
        self._is_less = False
        self._usable_bytes = self._taken_bytes = 0
        """As last read, and what others had taken of it since the look before."""

    def look(self, held_bytes: int) -> int:
        """KV bytes that may be held now, if `held_bytes` are."""
        now_s = self._clock()
        if now_s - self._read_s >= REFRESH_S:
            self._read_s = now_s
            self._follow(self._fitting(held_bytes))
        return self.kv_bytes

    def give_back(self) -> None:
        """Once less is held because less may be: others shall have it."""
        if self._is_less:
            self._is_less = False
            self._device.give_back()

    def _fitting(self, held_bytes: int) -> int:
        usable_bytes = self._device.usable_bytes(held_bytes, self._workspace_bytes)
        usable_bytes -= self._trend_bytes(usable_bytes)
        beside_workspace = int(SHARE * usable_bytes) - self._workspace_bytes
        resizable = usable_bytes * self._num_layers // (self._num_layers + 1)
        return int(max(0, min(beside_workspace, resizable, self._most_bytes)))

    def _trend_bytes(self, usable_bytes: int) -> int:
        """What others will take until the next look, if they did so twice."""
        before_bytes, taken_bytes = self._taken_bytes, max(0, self._usable_bytes - usable_bytes)
        self._usable_bytes, self._taken_bytes = usable_bytes, taken_bytes
        return min(before_bytes, taken_bytes)

    def _follow(self, fitting: int) -> None:
        if fitting < self.kv_bytes:
            self.kv_bytes, self._is_less = fitting, True
        elif fitting >= min(GROWTH * self.kv_bytes, self._most_bytes):
            self.kv_bytes = fitting
