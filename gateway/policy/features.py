"""What a request shows before it runs, as numbers.

Token ids are hashed, so the model needs no text and prompts given as token ids are as good as any.  Only a bounded
number of tokens is looked at: the last ones, where a chat's question stands, singly and in pairs; those before
them and the first ones, where instructions stand, singly.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.request import ServiceClass

NUM_SLOTS = 2048
"""Rows of the model for hashed tokens: in a window of some thousand requests, few of weight collide."""
NUM_TENANTS = 64
NUM_FIGURES = 4 + len(ServiceClass)
FORMAT = 1
"""Goes with samples and models, which mean nothing under other features."""
WIDTH = NUM_SLOTS + NUM_TENANTS + NUM_FIGURES
"""A request as one row of numbers: slots, tenant, figures."""

_NEAR, _FAR, _FIRST = 16, 48, 16
_MAX_SLOTS = 2 * _NEAR + _FAR + _FIRST
_OCTAVES = 8.0
"""Lengths enter as octaves over this: about as large as the ones and zeros beside them."""
_MAX_FIGURE = 8.0
"""64 octaves."""
_KINDS = np.array([kind << 56 for kind in range(1, 5)], np.uint64)
"""The same token means another thing in another place: these go into the bits that ids leave free."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - (NUM_SLOTS.bit_length() - 1))


class Features(msgspec.Struct, frozen=True, array_like=True):
    """What comes from others must also be sound, which decoding alone does not see to."""

    slots: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=NUM_SLOTS)]], msgspec.Meta(max_length=_MAX_SLOTS)]
    """Distinct rows of the hashed tokens."""
    tenant: Annotated[int, msgspec.Meta(ge=0, lt=NUM_TENANTS)]
    figures: Annotated[list[float], msgspec.Meta(min_length=NUM_FIGURES, max_length=NUM_FIGURES)]

    @property
    def is_sound(self) -> bool:
        return all(0 <= figure <= _MAX_FIGURE for figure in self.figures)


def tenant_of(name: str) -> int:
    """One of NUM_TENANTS, the same in every gateway."""
    return zlib.crc32(name.encode(errors="surrogatepass")) % NUM_TENANTS


def features(
    prompt: Sequence[int],
    max_tokens: int,
    service_class: ServiceClass,
    tenant: int,
    recent_octaves: Iterable[float],
) -> Features:
    """`recent_octaves`: the mean log2 of recent answers' lengths, the tenant's and everybody's."""
    octaves = [math.log2(len(prompt)), math.log2(max_tokens), *recent_octaves]
    is_class = [float(service_class is name) for name in ServiceClass]
    return Features(_slots(prompt), tenant, [value / _OCTAVES for value in octaves] + is_class)


def _slots(prompt: Sequence[int]) -> list[int]:
    far = max(0, len(prompt) - _NEAR - _FAR)
    first = np.array(prompt[: min(_FIRST, far)], np.uint64)
    last = np.array(prompt[far:], np.uint64)
    near = last[-_NEAR:]
    grams = np.concatenate((near, (near[1:] << np.uint64(24)) ^ near[:-1], last[:-_NEAR], first))
    return sorted(set(_hash(grams ^ _kinds(len(near), len(last), len(first))).tolist()))


@lru_cache(_NEAR + _FAR + _FIRST)
def _kinds(near: int, last: int, first: int) -> NDArray[np.uint64]:
    """Of the grams of so many tokens."""
    return np.repeat(_KINDS, (near, near - 1, last - near, first))


def _hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Multiply and fold, twice: the high bits depend on all bits."""
    mixed = values * _MULTIPLIER
    return (mixed ^ mixed >> np.uint64(32)) * _MULTIPLIER >> _SHIFT
