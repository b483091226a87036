"""The two views of the cache, torch's and the kernels': they attend alike and write alike."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from triton_backend import native
from triton_backend.attention import DecodeKV, DecodePart, PrefillKV, Scores
from triton_backend.cache import Group
from triton_backend.native_attention import NativeDecodeKV, NativePrefillKV, decode_view, prefill_view

library = native.library()
pytestmark = [
    pytest.mark.skipif(library is None, reason="no compiler here"),
    pytest.mark.usefixtures("one_thread"),
]

LAYERS = 2
DIMS = [(8, 8), (64, 64), (128, 128), (12, 6), (192, 128), (80, 80), (31, 33)]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
"""That of float32's sums, and of one rounding to bfloat16."""


class Case:
    """Groups of random rows, and what a step brings for them."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.key_dim, self.value_dim = DIMS[seed % len(DIMS)]
        kv_heads, share = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 4, 7])
        self.groups, self.positions = [], []
        for capacity in sorted(rng.sample([20, 64, 96, 300, 520], k=rng.randint(1, 3))):
            num_rows = rng.randint(1, 4)
            shapes = [
                (num_rows + rng.randint(0, 2), kv_heads, capacity, dim) for dim in (self.key_dim, self.value_dim)
            ]
            tensors = [numbers(*shape) for _ in range(LAYERS) for shape in shapes]
            self.groups.append(Group(capacity, list(range(num_rows)), tensors=tensors))
            self.positions.append(
                [rng.choice([0, capacity - 1, rng.randrange(capacity)]) for _ in range(num_rows)]
            )
        rows = sum(map(len, self.positions))
        # Heads as models have them: parts of one product, one position after the other.
        self.query = numbers(rows, 1, kv_heads * share, self.key_dim).transpose(1, 2)
        joint = numbers(rows, 1, kv_heads, self.key_dim + self.value_dim).transpose(1, 2)
        self.key, self.value = joint[..., : self.key_dim], joint[..., self.key_dim :]
        self.scores = Scores(
            rng.uniform(0.05, 0.5), rng.choice([None, 1, 7, 200]), rng.choice([None, None, rng.uniform(1, 50)])
        )

    def to_float32(self) -> "Case":
        for group in self.groups:
            group.tensors = [tensor.float() for tensor in group.tensors]
        self.query, self.key, self.value = self.query.float(), self.key.float(), self.value.float()
        return self

    def parts(self) -> list[DecodePart]:
        parts, start = [], 0
        for group, positions in zip(self.groups, self.positions, strict=True):
            at = slice(start, start := start + len(positions))
            parts.append(DecodePart(group, at, torch.tensor(positions), min(positions), max(positions)))
        return parts


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("seed", range(21))
def test_both_attend_and_write_alike(seed: int, dtype: torch.dtype) -> None:
    """Torch's view has the same numbers in float32, as it rounds more than once."""
    assert library is not None
    ours, theirs = Case(seed, dtype), Case(seed, dtype).to_float32()
    view, reference = NativeDecodeKV(library, ours.parts()), DecodeKV(theirs.parts())
    for layer in range(LAYERS):
        out = view.attend(layer, ours.query, ours.key, ours.value, ours.scores)
        expected = reference.attend(layer, theirs.query, theirs.key, theirs.value, theirs.scores)
        assert out.dtype is dtype
        torch.testing.assert_close(out.float(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    for one, other in zip(ours.groups, theirs.groups, strict=True):
        for written, wanted in zip(one.tensors, other.tensors, strict=True):
            assert torch.equal(written.float(), wanted)


class Chunk:
    """A prompt's row in one of several slots, and what a chunk brings for it."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16()

        self.start, length = rng.choice([0, 0, 1, 30, 200, 300]), rng.choice([1, 5, 16, 33, 100, 272])
        key_dim, value_dim = DIMS[seed % len(DIMS)]
        kv_heads, share = rng.choice([1, 2]), rng.choice([1, 2, 3])
        num_slots, capacity = rng.randint(1, 4), self.start + length + rng.choice([0, 1, 40])
        shapes = [(num_slots, kv_heads, capacity, dim) for dim in (key_dim, value_dim)]
        self.group = Group(
            capacity, list(range(num_slots)), tensors=[numbers(*shape) for _ in range(LAYERS) for shape in shapes]
        )
        self.slot = rng.randrange(num_slots)
        self.query = numbers(1, length, kv_heads * share, key_dim).transpose(1, 2)
        joint = numbers(1, length, kv_heads, key_dim + value_dim).transpose(1, 2)
        self.key, self.value = joint[..., :key_dim], joint[..., key_dim:]
        self.scores = Scores(
            rng.uniform(0.05, 0.5), rng.choice([None, 1, 7, 200]), rng.choice([None, None, rng.uniform(1, 50)])
        )

    def to_float32(self) -> "Chunk":
        self.group.tensors = [tensor.float() for tensor in self.group.tensors]
        self.query, self.key, self.value = self.query.float(), self.key.float(), self.value.float()
        return self

    @property
    def row(self) -> Group:
        return self.group.part(self.slot, self.slot + 1)


needs_matrix_units = pytest.mark.skipif(
    prefill_view(torch.bfloat16, torch.device("cpu")) is PrefillKV, reason="this processor has no matrix units"
)


@needs_matrix_units
@pytest.mark.parametrize("seed", range(42))
def test_chunks_attend_and_write_alike(seed: int) -> None:
    assert library is not None
    ours, theirs = Chunk(seed), Chunk(seed).to_float32()
    view, reference = NativePrefillKV(library, ours.row, ours.start), PrefillKV(theirs.row, theirs.start)
    for layer in range(LAYERS):
        out = view.attend(layer, ours.query, ours.key, ours.value, ours.scores)
        expected = reference.attend(layer, theirs.query, theirs.key, theirs.value, theirs.scores)
        assert out.isfinite().all()
        torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=2**-7)
    for written, wanted in zip(ours.group.tensors, theirs.group.tensors, strict=True):
        assert torch.equal(written.float(), wanted)


def attended(chunk: Chunk) -> Tensor:
    assert library is not None
    view = NativePrefillKV(library, chunk.row, chunk.start)
    return view.attend(0, chunk.query, chunk.key, chunk.value, chunk.scores)


@needs_matrix_units
@pytest.mark.parametrize("size", [30, 1e4])
def test_weights_of_far_lower_scores_are_zero(size: float) -> None:
    """Neither denormal nor the difference of two infinities."""
    ours, theirs = Chunk(1), Chunk(1).to_float32()
    for chunk in (ours, theirs):
        chunk.query *= size
    reference = PrefillKV(theirs.row, theirs.start)
    out = attended(ours)
    assert out.isfinite().all()
    expected = reference.attend(0, theirs.query, theirs.key, theirs.value, theirs.scores)
    # Two scores may be so near each other that float32 sums in another order tell them apart otherwise.
    assert ((out.float() - expected).abs() < 2**-5).float().mean() > 0.99


@needs_matrix_units
def test_a_query_that_is_no_number_leaves_others_alone() -> None:
    chunk = Chunk(4)
    positions = chunk.query.shape[2]
    expected = attended(Chunk(4))
    chunk.query[:, :, positions // 2] = torch.nan
    out = attended(chunk)
    assert out[:, positions // 2].isnan().all()
    others = torch.arange(positions) != positions // 2
    assert torch.equal(out[:, others], expected[:, others])


def test_threads_change_nothing() -> None:
    assert library is not None
    outs = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        case = Case(5, torch.bfloat16)
        outs.append(NativeDecodeKV(library, case.parts()).attend(0, case.query, case.key, case.value, case.scores))
    torch.set_num_threads(1)
    assert torch.equal(*outs)


def test_what_is_no_number_stays_none() -> None:
    """A step that went wrong has to be seen as such."""
    assert library is not None
    case = Case(1, torch.float32)
    case.query[0] = torch.nan
    out = NativeDecodeKV(library, case.parts()).attend(0, case.query, case.key, case.value, case.scores)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


def test_other_numbers_and_devices_are_left_to_torch() -> None:
    assert decode_view(torch.float16, torch.device("cpu")) is DecodeKV
    assert decode_view(torch.bfloat16, torch.device("meta")) is DecodeKV
    assert prefill_view(torch.float32, torch.device("cpu")) is PrefillKV
    assert prefill_view(torch.bfloat16, torch.device("meta")) is PrefillKV


def test_kernels_run_on_torchs_threads() -> None:
    """There is one OpenMP of that name (others, of other names, belong to other packages)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    files = {line.split()[-1] for line in maps.read_text().splitlines()}
    assert len({file for file in files if Path(file).name == "libgomp.so.1"}) == 1
