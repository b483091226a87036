"""A model as a runner sees it: token ids go in, logits come out, keys and values go where the step says."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from triton_backend.attention import KV, Probe, UnsupportedModel
from triton_backend.cache import LayerShape
from triton_backend.loader import adopt, config_context
from triton_backend.sampling import Pick
from triton_backend.sequence import Sequence


class Decoder:
    def __init__(self, model: PreTrainedModel, context_tokens: int | None) -> None:
        """`context_tokens` None: what the model's config says.  Raises UnsupportedModel."""
        adopt(model)
        config = model.config.get_text_config()
        self._model = model
        self.vocabulary = int(config.vocab_size)
        self.context_tokens = config_context(config, context_tokens)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.shapes = self._probe()
        """What each layer keeps of a token."""

    @property
    def bytes_per_token(self) -> int:
        return sum(shape.elements for shape in self.shapes) * self.dtype.itemsize

    @torch.inference_mode()
    def logits(self, ids: Tensor, positions: Tensor, kv: KV, kept: Tensor | None = None) -> Tensor:
        """[rows, positions, vocabulary] for ids [rows, positions], or for the positions `kept` of each row."""
        options: dict[str, Tensor] = {} if kept is None else {"logits_to_keep": kept}
        logits: Tensor = self._model(
            input_ids=ids, position_ids=positions, use_cache=False, kv=kv, **options
        ).logits
        if kept is not None and logits.shape[1] != len(kept):  # The model's class knows no logits_to_keep.
            return logits[:, kept]
        return logits

    def _probe(self) -> list[LayerShape]:
        """From a dry run of one token."""
        probe = Probe()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.logits(token, token, probe)
        if sorted(probe.shapes) != list(range(len(probe.shapes))) or not probe.shapes:
            raise UnsupportedModel("not all its layers keep keys and values; choose a model with attention only")
        return [probe.shapes[layer] for layer in range(len(probe.shapes))]


def pick(row: Sequence) -> Pick:
    """What the row's next token is drawn by."""
    banned = row.new.stop_ids if row.index < row.new.min_tokens else []
    return Pick(row.row, row.new.sampling, row.index, banned)
