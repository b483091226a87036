"""A model as a runner sees it: token ids go in, logits come out, keys and values go where the step says.

Its layers can be compiled, which makes a few kernels of the dozens of small ones between the matrix products.  The
compiler sees attention as one operation; what it reads and writes is the step's matter.
"""

from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triton_backend.attention import KV, Probe, Scores, UnsupportedModel
from triton_backend.cache import LayerShape
from triton_backend.loader import adopt, check_windows, config_context
from triton_backend.native_layers import is_native
from triton_backend.sampling import Pick
from triton_backend.sequence import Sequence

_MAX_COMPILED = 64
"""Of one kind of layer: by type of attention, of numbers, and by shape."""
_kv: ContextVar[KV] = ContextVar("kv")
"""Of the step under way."""


class _Step:
    """Attends through whatever the step under way has."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        out: Tensor = _attend(layer, query, key, value, scores.scaling, scores.window, scores.softcap)
        return out


_STEP = _Step()


@torch.library.custom_op("bucketserve::attend", mutates_args=())
def _attend(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    return _kv.get().attend(layer, query, key, value, Scores(scaling, window, softcap)).contiguous()


@_attend.register_fake
def _shape_of_attend(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    rows, heads, positions, _ = query.shape
    return query.new_empty(rows, positions, heads, value.shape[3])


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
        self._is_compiled = False
        self.shapes = self._probe()
        """What each layer keeps of a token."""

    @property
    def bytes_per_token(self) -> int:
        return sum(shape.elements for shape in self.shapes) * self.dtype.itemsize

    @torch.inference_mode()
    def logits(self, ids: Tensor, positions: Tensor, kv: KV, kept: Tensor | None = None) -> Tensor:
        """[rows, positions, vocabulary] for ids [rows, positions], or for the positions `kept` of each row."""
        options: dict[str, Tensor] = {} if kept is None else {"logits_to_keep": kept}
        if self._is_compiled:
            _kv.set(kv)
            kv = _STEP
        logits: Tensor = self._model(
            input_ids=ids, position_ids=positions, use_cache=False, kv=kv, **options
        ).logits
        if kept is not None and logits.shape[1] != len(kept):  # The model's class knows no logits_to_keep.
            return logits[:, kept]
        return logits

    def compile(self, backend: str = "inductor") -> None:
        """From here on layers are compiled as they are run, but for those that our kernels run.  What cannot be
        compiled runs as it is.

        Layers of one kind share what was compiled, whatever their number and that of rows and positions, but that
        one of these is compiled by itself.
        """
        layers = [layer for layer in self._layers() if not is_native(layer)]
        if not layers:  # Then torch's compiler need not even be imported.
            return
        self._is_compiled = True
        config = torch._dynamo.config
        config.allow_unspec_int_on_nn_module = True
        config.recompile_limit = max(config.recompile_limit, _MAX_COMPILED)
        config.suppress_errors = True
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)

    def _layers(self) -> list[nn.Module]:
        """All that have attention of their own."""
        lists = [module for module in self._model.modules() if isinstance(module, nn.ModuleList)]
        return [
            layer
            for layers in lists
            for layer in layers
            if any(getattr(module, "layer_idx", None) is not None for module in layer.modules())
        ]

    def _probe(self) -> list[LayerShape]:
        """From a dry run of one token."""
        probe = Probe()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.logits(token, token, probe)
        if sorted(probe.shapes) != list(range(len(probe.shapes))) or not probe.shapes:
            raise UnsupportedModel("not all its layers keep keys and values; choose a model with attention only")
        layers = range(len(probe.shapes))
        check_windows(
            self._model.config.get_text_config(), [probe.windows[layer] for layer in layers], self.context_tokens
        )
        return [probe.shapes[layer] for layer in layers]


def pick(row: Sequence) -> Pick:
    """What the row's next token is drawn by."""
    banned = row.new.stop_ids if row.index < row.new.min_tokens else []
    return Pick(row.row, row.new.sampling, row.index, banned)
