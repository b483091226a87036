"""What is asked of a card's shared memory is there on the smallest."""

import pytest

from triton_backend.paged_cache import BLOCK_TOKENS
from triton_backend.shared_memory import num_stages


@pytest.mark.parametrize(
    ("group_size", "key_size", "value_size", "itemsize", "stages"),
    [
        (16, 64, 64, 2, 3),
        (16, 128, 128, 2, 3),
        (16, 256, 128, 2, 3),
        (16, 256, 256, 2, 3),
        (64, 256, 256, 2, 1),
        (16, 512, 512, 2, 1),
        (16, 128, 128, 4, 3),
        (16, 256, 256, 4, 1),
    ],
)
def test_stages_are_as_many_as_fit(
    group_size: int, key_size: int, value_size: int, itemsize: int, stages: int
) -> None:
    """Triton 3.9 compiles these for a 4090 to 20, 38, 58, 74, (more than 99), 146, 76 and 148 KiB with stages."""
    assert num_stages(group_size, key_size, value_size, BLOCK_TOKENS, itemsize) == stages
