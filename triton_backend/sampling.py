"""Drawing tokens: Gumbel-max with noise from one integer hash of (seed, index, token id).

The token drawn is argmax(logit + noise) over the filtered logits, which has exactly the softmax distribution.
The noise depends on nothing but the seed, the token's index in its ticket and the candidate's id: not on the
batch, the device, or whether the row was put back in between.

The hash: `mix64` is one step of splitmix64, `mix32` is lowbias32 (nullprogram.com/blog/2018/07/31).  With
key = mix64(mix64(seed) + index), split into low and high halves,
    h = mix32((mix32(id) ^ low) + high),  u = (h >> 1) * 2**-31 + 2**-32,  noise = -log(-log1p(-u)).
Hashing the ids first (once, for all rows) scatters them, so that two keys meet in hardly any h.  Large noise
comes from small u, where float32 is finest.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from triton_backend import native
from triton_backend.contract import MAX_LOGPROBS, Alternatives, Sampling
from triton_backend.native import TYPES
from triton_backend.race_kernel import race

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would overflow."""
LARGEST_U = 1 - 2**-24
"""The largest float32 below 1, so that no noise is infinite."""
NUCLEUS_CANDIDATES = 256
"""Sorted first to find a nucleus; nearly every one is smaller, and sorting a whole vocabulary is slow."""

FILTERED_AT_ONCE = 2**22
"""Logits whose best are sorted at once, at most: it takes up to 16 times as many bytes."""

NOT_FINITE = -1
"""Drawn for a row whose logits are not finite."""


@dataclass(frozen=True, slots=True)
class Pick:
    """What one row draws by."""

    row: int
    sampling: Sampling
    index: int
    """Of the token to draw, counted from the ticket's first."""
    banned_ids: list[int]
    """Not to be drawn this time."""

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW


@dataclass(slots=True)
class Draws:
    """Tokens drawn in one step; columns are parallel."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Under the raw logits; 0 for rows that did not ask."""
    alternatives: list[Alternatives] = field(default_factory=list)
    """Empty for rows that did not ask."""

    def __add__(self, more: "Draws") -> "Draws":
        return Draws(
            self.tokens + more.tokens, self.logprobs + more.logprobs, self.alternatives + more.alternatives
        )

    def only(self, ats: list[int]) -> "Draws":
        columns = self.tokens, self.logprobs, self.alternatives
        return Draws(*[[column[at] for at in ats] for column in columns])  # type: ignore[arg-type]

    def read(self) -> "Draws":
        """These: they are on the host."""
        return self


class Reading(Protocol):
    """What a step draws, once it has."""

    def read(self) -> Draws:
        """Waits for the step.  Call it once."""


def draw(logits: Tensor, picks: list[Pick]) -> Draws:
    """One token a row of `logits` [rows, vocabulary], with one transfer to the host; NOT_FINITE where there is no
    telling."""
    return tell(sample(logits, picks), picks)


def sample(logits: Tensor, picks: list[Pick]) -> Tensor:
    """A table on the logits' device for `tell`.  Its first column are the token ids: the only one, unless log
    probabilities were asked for.

    Waits for the device only if a row has a nucleus.
    """
    maxima, tokens = _choose(_ban(logits, picks), picks)
    # A maximum is NaN if anything in its row is, and then there is no telling what the row should draw.
    tokens = tokens.where(maxima.isfinite(), NOT_FINITE)
    most = _most_logprobs(picks)
    if most is None:
        return tokens[:, None]
    # float64 holds every token id exactly, so ids and log probabilities travel together.
    logprobs = torch.log_softmax(logits.float(), -1)
    best = logprobs.topk(min(most, logits.shape[-1]))
    chosen = logprobs.gather(-1, tokens[:, None].clamp(min=0))
    columns = [tokens[:, None], chosen, best.indices, best.values]
    return torch.cat([column.double() for column in columns], -1)


def dearest(num_rows: int, vocabulary: int) -> list[Sampling]:
    """For so many rows, what takes the most memory: all tell log probabilities, and as many as are filtered in two
    goes have a nucleus that is nearly the whole vocabulary, as they are so hot.  Two, as what the first has freed
    may be in the second's way."""
    hot = Sampling(temperature=100.0, top_p=0.9999, logprobs=MAX_LOGPROBS)
    num_hot = min(num_rows, 2 * _rows_at_once(vocabulary))
    return [hot] * num_hot + [Sampling(logprobs=MAX_LOGPROBS)] * (num_rows - num_hot)


def tell(table: Tensor, picks: list[Pick]) -> Draws:
    """What `sample` drew by the picks."""
    if _most_logprobs(picks) is None:
        return Draws(table[:, 0].tolist(), [0.0] * len(picks), [[] for _ in picks])
    return _read(table.tolist(), [pick.sampling.logprobs for pick in picks])


def _most_logprobs(picks: list[Pick]) -> int | None:
    asked = [pick.sampling.logprobs for pick in picks]
    return max((count for count in asked if count is not None), default=None)


def _read(table: list[list[float]], asked: list[int | None]) -> Draws:
    draws = Draws()
    for (token, logprob, *best), count in zip(table, asked, strict=True):
        half = len(best) // 2
        draws.tokens.append(int(token))
        draws.logprobs.append(logprob if count is not None else 0.0)
        alternatives = zip(map(int, best[:half]), best[half:], strict=True)
        draws.alternatives.append(list(alternatives)[: count or 0])
    return draws


def upload(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the values, without waiting for the device."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    # From pageable memory the copy would wait; the pinned memory is kept until it is over.
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def _ban(logits: Tensor, picks: list[Pick]) -> Tensor:
    pairs = [(row, banned) for row, pick in enumerate(picks) for banned in pick.banned_ids]
    if not pairs:
        return logits
    rows, ids = upload(pairs, logits.device).unbind(-1)
    return logits.index_put((rows, ids), logits.new_full((), float("-inf")))


def _choose(logits: Tensor, picks: list[Pick]) -> tuple[Tensor, Tensor]:
    """What was maximised, and the token ids that did it; [rows] each."""
    sampled = [row for row, pick in enumerate(picks) if not pick.is_greedy]
    if len(sampled) == len(picks):
        return _race(logits, picks)
    maxima, tokens = logits.max(-1)  # Twice as fast as argmax.
    if sampled:
        rows = upload(sampled, logits.device)
        maxima = maxima.float()
        maxima[rows], tokens[rows] = _race(logits[rows], [picks[row] for row in sampled])
    return maxima, tokens


def _race(logits: Tensor, picks: list[Pick]) -> tuple[Tensor, Tensor]:
    """The largest of the filtered logits plus noise in float32, and the ids that have it; [rows] each."""
    temperatures = upload([pick.sampling.temperature for pick in picks], logits.device, torch.float32)
    floors = _floors(logits, temperatures, picks)
    if logits.device.type == "cpu" and logits.dtype in TYPES and (library := native.library()) is not None:
        return race(library, logits, temperatures, floors, _keys(picks, logits.device))
    scaled = logits.float() / temperatures[:, None]
    if floors is not None:
        scaled.masked_fill_(scaled < floors[:, None], float("-inf"))
    best = scaled.add_(noise(picks, scaled.shape[-1], logits.device)).max(-1)
    return best.values, best.indices


def _floors(logits: Tensor, temperatures: Tensor, picks: list[Pick]) -> Tensor | None:
    """[rows]: what is below, once divided by the temperature, is not drawn.  None: all may be."""
    vocabulary = logits.shape[-1]
    nuclei = [pick.sampling.top_p < 1 for pick in picks]
    filtered = [row for row, pick in enumerate(picks) if nuclei[row] or 0 < pick.sampling.top_k < vocabulary]
    if not filtered:
        return None
    floors = temperatures.new_full((len(picks),), float("-inf"))

    def filter_(rows: list[int], candidates: int) -> list[Tensor]:
        """Set the floors of these; for each, whether it keeps more than so many candidates."""
        are_wider, at_once = [], _rows_at_once(vocabulary)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            at = upload(some, logits.device)
            samplings = [picks[row].sampling for row in some]
            floors[at], is_wider = _floor(logits[at], temperatures[at, None], samplings, candidates)
            are_wider.append(is_wider)
        return are_wider

    are_wider = torch.cat(filter_(filtered, NUCLEUS_CANDIDATES))
    # Asked once for all: each time the device is waited for.
    if any(nuclei) and bool(are_wider.any()):
        wide = [row for row, is_wider in zip(filtered, are_wider.tolist(), strict=True) if is_wider]
        filter_(wide, vocabulary)
    return floors


def _rows_at_once(vocabulary: int) -> int:
    return max(1, FILTERED_AT_ONCE // vocabulary)


def _floor(
    logits: Tensor, temperatures: Tensor, samplings: list[Sampling], candidates: int
) -> tuple[Tensor, Tensor]:
    """The lowest logit over temperature that top_k and top_p keep, equals of it being kept too, among so many
    candidates, or as many as top_k leaves; and whether top_p keeps more than these; [rows] each.

    The nucleus is the shortest run of best tokens whose probability, among the top k, reaches top_p.
    """
    scaled = logits.float() / temperatures
    vocabulary = scaled.shape[-1]
    top_k = [min(sampling.top_k or vocabulary, vocabulary) for sampling in samplings]
    # Rounded sums may reach 1 early: a row without top_p must not lose its tail to that.
    top_p = [sampling.top_p if sampling.top_p < 1 else 2.0 for sampling in samplings]
    ks = upload(top_k, scaled.device)[:, None]
    ps = upload(top_p, scaled.device)[:, None]
    width = min(vocabulary, max([candidates, *(k for k in top_k if k < vocabulary)]))
    best = scaled.topk(width).values if width < vocabulary else scaled.sort(descending=True).values
    last = _last_kept(best, scaled, ks, ps)
    return best.gather(-1, last.clamp(max=width - 1))[:, 0], (last >= width)[:, 0]


def _last_kept(best: Tensor, scaled: Tensor, ks: Tensor, ps: Tensor) -> Tensor:
    """Rank [rows, 1] of the last candidate kept; the width of `best` or more if it lies beyond."""
    ranks = torch.arange(best.shape[-1], device=best.device)
    among_k = best.masked_fill(ranks >= ks, float("-inf")).logsumexp(-1, keepdim=True)
    total = among_k.where(ks < scaled.shape[-1], scaled.logsumexp(-1, keepdim=True))
    mass = (best - total).exp().cumsum(-1)
    return torch.minimum((mass < ps).sum(-1, keepdim=True), ks - 1)


def noise(picks: list[Pick], vocabulary: int, device: torch.device) -> Tensor:
    """Gumbel noise [rows, vocabulary] in float32."""
    keys = _keys(picks, device)
    if device.type == "cuda":
        from triton_backend.noise_kernel import gumbel  # Triton comes with torch for CUDA only.

        return gumbel(keys, vocabulary, LARGEST_U)
    low, high = keys[:, :, None].unbind(1)
    h = _mix32((_scattered_ids(vocabulary, device) ^ low).add_(high))
    u = _shifted(h, 1).float().mul_(2**-31).add_(2**-32).clamp_(max=LARGEST_U)
    return u.neg_().log1p_().neg_().log_().neg_()


def _keys(picks: list[Pick], device: torch.device) -> Tensor:
    """Low and high half [rows, 2] of each one's key, in int32."""
    keys = [_key(pick.sampling.seed, pick.index) for pick in picks]
    return upload([(_signed(key & _MASK32), _signed(key >> 32)) for key in keys], device, torch.int32)


@cache
def _scattered_ids(vocabulary: int, device: torch.device) -> Tensor:
    return _mix32(torch.arange(vocabulary, dtype=torch.int32, device=device))


_MASK32 = 2**32 - 1
_MASK64 = 2**64 - 1


def _key(seed: int, index: int) -> int:
    return _mix64(_mix64(seed) + index)


def _mix64(x: int) -> int:
    x = x + 0x9E3779B97F4A7C15 & _MASK64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK64
    return x ^ x >> 31


def _mix32(x: Tensor) -> Tensor:
    """In place; int32 products wrap around as unsigned ones do."""
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15)).mul_(_signed(0x846CA68B))
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The int32s shifted right as unsigned numbers."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(x: int) -> int:
    """The int32 with the same 32 bits."""
    return x - 2**32 if x >= 2**31 else x
