"""The kernels for rows compute what torch's operators do, with one rounding."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from triton_backend import native
from triton_backend.row_kernels import RowKernels

library = native.library()
pytestmark = pytest.mark.skipif(library is None, reason="no compiler here")

TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 2**-8}
CASES = list(product(TOLERANCES, [4, 31, 32, 64, 80, 1056]))
cases = pytest.mark.parametrize(("dtype", "dim"), CASES, ids=str)


@pytest.fixture
def kernels() -> RowKernels:
    assert library is not None
    return RowKernels(library)


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * 3).to(dtype)


def heads_of(joint: Tensor, dim: int, count: int) -> Tensor:
    """A part of each row, from `dim` on."""
    part = joint[..., dim : (1 + count) * dim]
    return part.view(*part.shape[:2], count, dim)


def assert_close(out: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[out.dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


@cases
def test_rms_norm(kernels: RowKernels, dtype: torch.dtype, dim: int) -> None:
    """Of whole rows, and of heads that are a part of each."""
    weight = numbers(dtype, dim)
    joint = numbers(dtype, 3, 7, 5 * dim)
    for rows in (joint[..., :dim], heads_of(joint, dim, 3), joint[:, :1, -dim:]):
        for offset, epsilon in ((0.0, 1e-5), (1.0, 0.1)):
            plain = rows.float()
            scale = torch.rsqrt(plain.square().mean(-1, keepdim=True) + epsilon)
            out = kernels.rms_norm(rows, weight, offset, epsilon)
            assert_close(out, plain * scale * (weight.float() + offset))


@cases
def test_silu_gate(kernels: RowKernels, dtype: torch.dtype, dim: int) -> None:
    joint = numbers(dtype, 3, 7, 2 * dim) * 20  # Beyond where the exponential function ends.
    gate, up = joint[..., :dim], joint[..., dim:]
    assert_close(kernels.silu_gate(gate, up), torch.nn.functional.silu(gate.float()) * up.float())


@cases
def test_rotate(kernels: RowKernels, dtype: torch.dtype, dim: int) -> None:
    """Of all of a head, or of its first numbers."""
    for rotated in {dim // 2 * 2, dim // 4 * 2}:
        joint = numbers(dtype, 3, 7, 6 * dim)
        heads = heads_of(joint, dim, 4)
        cosines, sines = numbers(dtype, 3, 7, rotated), numbers(dtype, 3, 7, rotated + 1)[..., 1:].contiguous()
        plain = heads.float()
        x, y = plain[..., :rotated].chunk(2, -1)
        turned = torch.cat([-y, x], -1) * sines.float()[:, :, None]
        expected = plain.clone()
        expected[..., :rotated] = plain[..., :rotated] * cosines.float()[:, :, None] + turned
        before = joint.clone()
        kernels.rotate_(heads, cosines, sines)
        assert_close(heads, expected)
        assert torch.equal(joint[..., :dim], before[..., :dim])
        assert torch.equal(joint[..., 5 * dim :], before[..., 5 * dim :])


def test_what_is_no_number_stays_none(kernels: RowKernels) -> None:
    rows = numbers(torch.bfloat16, 2, 1, 64)
    rows[0, 0, 5] = torch.nan
    calls: list[Callable[[], Tensor]] = [
        lambda: kernels.rms_norm(rows, rows[1, 0], 0.0, 1e-5),
        lambda: kernels.silu_gate(rows, rows),
    ]
    for call in calls:
        out = call()
        assert out[0, 0, 5].isnan()
        assert out[1].isfinite().all()
