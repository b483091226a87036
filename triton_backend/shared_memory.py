"""How much of a processor's shared memory the kernel for newest tokens takes (decode_kernel.py)."""

LIMIT_BYTES = 99 * 1024
"""What a program may have on the cards that have the least: 4090, L40S, A10."""
STAGES = 3
"""Of the loop over blocks: keys and values come while those before them are multiplied."""


def num_stages(group_size: int, key_size: int, value_size: int, block_tokens: int, itemsize: int) -> int:
    """Of a program for `group_size` query heads; all sizes are padded.

    With stages, a block's keys and values lie in shared memory, beside the queries and the block's weights: in
    bfloat16 that is 38 KiB for heads of 128, 74 KiB for 256, and 146 KiB for 512.  Triton's compiler says the
    same, for two stages and for three.  With one stage keys and values take turns: 82 KiB for 512.
    """
    blocks = block_tokens * (key_size + value_size)
    beside = group_size * (key_size + block_tokens)
    return STAGES if (blocks + beside) * itemsize <= LIMIT_BYTES else 1
