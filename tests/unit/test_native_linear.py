"""Our kernel for linear layers: exact but for one rounding, for all shapes, and blind to a row's neighbours."""

import random
from ctypes import CDLL

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from triton_backend.native_linear import NativeLinear, usable_library
from triton_backend.packed import PackedLinear

pytestmark = pytest.mark.skipif(usable_library() is None, reason="no compiler or no matrix units here")

ROUNDING = 2**-8
"""Of one number to bfloat16."""
SUMMING = 2**-20
"""Of float32 sums of some hundred products, of their absolute values."""
SHAPES = [
    (1, 32, 1),
    (1, 64, 96),
    (16, 32, 32),
    (17, 32, 31),
    (31, 32, 65),
    (33, 704, 40),
    (256, 64, 33),
    (257, 2848, 70),
    (263, 96, 7),
    (70, 16416, 33),
]
"""Rows, inputs, outputs: in the last three, blocks of different sizes."""


@pytest.fixture
def library() -> CDLL:
    library = usable_library()
    assert library is not None
    return library


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def random_shapes(num: int) -> list[tuple[int, int, int]]:
    rng = random.Random(0)
    return [(rng.randint(1, 600), 32 * rng.randint(1, 6), rng.randint(1, 200)) for _ in range(num)]


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", SHAPES + random_shapes(20), ids=str)
def test_sums_are_rounded_once(library: CDLL, shape: tuple[int, int, int], has_bias: bool) -> None:
    torch.manual_seed(0)
    num_rows, inputs, outputs = shape
    rows, weight = numbers(num_rows, inputs), numbers(outputs, inputs)
    bias = numbers(outputs) if has_bias else None
    out = NativeLinear(library, weight, bias)(rows)
    exact, size = rows.double() @ weight.double().T, rows.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    assert out.shape == exact.shape and out.dtype is torch.bfloat16
    assert ((out.double() - exact).abs() <= ROUNDING * exact.abs() + SUMMING * size).all()


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("num_rows", "inputs", "half"), [(1, 64, 32), (17, 32, 96), (300, 96, 64)])
def test_gated_outputs_are_rounded_once(
    library: CDLL, num_rows: int, inputs: int, half: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    rows, weight = numbers(num_rows, inputs), numbers(2 * half, inputs)
    bias = numbers(2 * half) if has_bias else None
    out = NativeLinear(library, weight, bias).gated(rows)
    exact = linear(rows.double(), weight.double(), None if bias is None else bias.double())
    assert out.shape == (num_rows, half)
    torch.testing.assert_close(out.double(), silu(exact[:, :half]) * exact[:, half:], rtol=ROUNDING, atol=1e-3)


def test_a_row_is_the_same_in_any_company_to_the_bit(library: CDLL) -> None:
    """So it is not these layers if a row's greedy tokens change with the batch."""
    torch.manual_seed(0)
    rows = numbers(300, 704)
    layer = NativeLinear(library, numbers(64, 704), None)
    together, gated = layer(rows), layer.gated(rows)
    for first, end in ((0, 1), (299, 300), (3, 20), (31, 64), (100, 299)):
        assert torch.equal(layer(rows[first:end]), together[first:end])
        assert torch.equal(layer.gated(rows[first:end]), gated[first:end])


def test_what_is_no_number_stays_in_its_row(library: CDLL) -> None:
    torch.manual_seed(0)
    for num_rows in (7, 39):
        rows = numbers(num_rows, 32)
        rows[1::2] = torch.nan
        out = NativeLinear(library, numbers(5, 32), None)(rows)
        assert out[::2].isfinite().all()
        assert out[1::2].isnan().all()


def test_other_numbers_of_inputs_are_left_to_onednn(library: CDLL) -> None:
    torch.manual_seed(0)
    rows, weight = numbers(3, 33), numbers(5, 33)
    layer = PackedLinear(weight, None)
    assert not isinstance(layer.product, NativeLinear)
    torch.testing.assert_close(layer(rows), linear(rows, weight), rtol=2 * ROUNDING, atol=2 * ROUNDING)


def test_rows_of_any_shape_and_order(library: CDLL) -> None:
    torch.manual_seed(0)
    layer = NativeLinear(library, numbers(16, 32), numbers(16))
    rows = numbers(3, 2, 32)
    flat = layer(rows.view(6, 32))
    assert torch.equal(layer(rows), flat.view(3, 2, 16))
    assert torch.equal(layer(rows.transpose(0, 1)), flat.view(3, 2, 16).transpose(0, 1))
    assert torch.equal(layer(rows[0, 0]), flat[0])
    assert layer(rows[:0]).shape == (0, 2, 16)
