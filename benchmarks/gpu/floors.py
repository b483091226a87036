"""What steps take at the least, on a device that reads at the rate of a large copy and multiplies at that of a
large product.

A decode step reads the keys and values of its rows, and multiplies each row with all weights.  These are read once
for all rows meanwhile, so the longer of the two counts: with few rows reading, with many the products.
"""

from transformers import PreTrainedModel

from benchmarks.gpu.shapes import kv_bytes_per_token, logit_weights, matrix_weights, read_bytes
from benchmarks.gpu.steps import Ceilings


class Floors:
    """Of one model.  The arithmetic of attention is left out."""

    def __init__(self, model: PreTrainedModel, ceilings: Ceilings) -> None:
        self._weights_s = read_bytes(model) / ceilings.bytes_per_s
        self._context_token_s = kv_bytes_per_token(model) / ceilings.bytes_per_s
        self._row_s = 2 * (matrix_weights(model) + logit_weights(model)) / ceilings.flops_per_s
        self._prompt_token_s = 2 * matrix_weights(model) / ceilings.flops_per_s

    def step_s(self, num_rows: int, context_tokens: float) -> float:
        """A decode step of so many rows, each with so many tokens."""
        return num_rows * context_tokens * self._context_token_s + max(self._weights_s, num_rows * self._row_s)

    def request_s(self, num_rows: int, prompt_tokens: int, output_tokens: int) -> float:
        """A request's share of the time when so many rows are at all points of their answers: its prompt, and
        then its part of decode steps, one after the other."""
        step_s = self.step_s(num_rows, prompt_tokens + output_tokens / 2)
        return prompt_tokens * self._prompt_token_s + output_tokens * step_s / num_rows
