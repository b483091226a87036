"""Drawing tokens: the hash, the distribution, the filters, and independence of the batch."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from triton_backend import native
from triton_backend.contract import Sampling
from triton_backend.device import Host
from triton_backend.sampling import NOT_FINITE, Pick, dearest, draw, noise

GREEDY = Sampling(temperature=0)
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def pick(sampling: Sampling, index: int = 0, row: int = 0, banned: list[int] | None = None) -> Pick:
    return Pick(row, sampling, index, banned or [])


def tokens(logits: torch.Tensor, picks: list[Pick]) -> list[int]:
    return draw(logits, picks).tokens


def counts(logits: torch.Tensor, num_draws: int, **sampling: float) -> torch.Tensor:
    """How often each token is drawn for one seed at the indexes 0 .. num_draws."""
    picks = [pick(Sampling(seed=7, **sampling), index) for index in range(num_draws)]  # type: ignore[arg-type]
    drawn = torch.tensor(tokens(logits.expand(num_draws, -1), picks))
    return torch.bincount(drawn, minlength=len(logits)).double()


def chi_square(observed: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


def plain_noise(seed: int, index: int, token: int) -> float:
    """The hash as the module's docstring tells it, in Python's own integers."""

    def mix64(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def mix32(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    key = mix64(mix64(seed % 2**64) + index)
    low, high = key % 2**32, key >> 32
    h = mix32(((mix32(token) ^ low) + high) % 2**32)
    u = min((h >> 1) * 2**-31 + 2**-32, 1 - 2**-24)
    return -math.log(-math.log1p(-u))


SEEDS = [(0, 0), (0, 1), (1, 0), (-1, 5), (2**64 - 1, 5), (2**63, 10**6)]


def test_the_noise_is_the_documented_hash() -> None:
    picks = [pick(Sampling(seed=seed), index) for seed, index in SEEDS]
    want = [[plain_noise(seed, index, token) for token in range(500)] for seed, index in SEEDS]
    torch.testing.assert_close(noise(picks, 500, torch.device("cpu")), torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_the_noise_never_changes() -> None:
    """Golden values: with others, a request's text would change in the middle of an upgrade."""
    got = [round(plain_noise(seed, index, 3), 6) for seed, index in SEEDS]
    assert got == [-0.449641, -0.200358, -0.97073, 0.236536, 0.236536, 1.684585]


def test_the_noise_follows_the_gumbel_distribution() -> None:
    """Over ids, indexes and seeds: 64 equal bins, chi-square under its 99.99 % point of 63 degrees."""
    cdf = torch.linspace(0, 1, 65, dtype=torch.float64)[1:-1]
    edges = -torch.log(-torch.log(cdf))
    over_ids = noise([pick(Sampling(seed=3))], 50_000, torch.device("cpu"))
    over_indexes = noise([pick(Sampling(seed=3), at) for at in range(5_000)], 10, torch.device("cpu"))
    over_seeds = noise([pick(Sampling(seed=at)) for at in range(5_000)], 10, torch.device("cpu"))
    for sample in (over_ids, over_indexes, over_seeds):
        bins = torch.bincount(torch.bucketize(sample.double().flatten(), edges), minlength=64).double()
        assert chi_square(bins, torch.full((64,), 1 / 64, dtype=torch.float64)) < 115


def test_noise_of_neighbouring_seeds_and_indexes_is_unrelated() -> None:
    picks = [pick(Sampling(seed=seed), index) for seed in range(4) for index in range(4)]
    correlation = torch.corrcoef(noise(picks, 20_000, torch.device("cpu")))
    assert (correlation - torch.eye(16)).abs().max() < 0.04


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_their_probability(temperature: float) -> None:
    """Chi-square of four tokens under its 99.99 % point for 3 degrees of freedom."""
    observed = counts(LOGITS, 4000, temperature=temperature)
    probabilities = torch.softmax(LOGITS.double() / temperature, -1)
    assert observed[4] == 0
    assert chi_square(observed[:4], probabilities[:4]) < 21.1


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_p": 0.5}, 1),
        ({"top_p": 0.7}, 2),  # 0.64 alone does not reach 0.7: the token that crosses it is kept
        ({"top_k": 3, "top_p": 0.9}, 2),  # 0.67 + 0.24 among the best three
        ({"top_k": 3, "top_p": 0.92}, 3),
        ({"top_p": 0.5, "temperature": 4.0}, 2),  # the temperature comes first: 0.35 + 0.28
    ],
)
def test_filters_keep_the_best_and_their_proportions(sampling: dict[str, float], kept: int) -> None:
    observed = counts(LOGITS, 2000, **sampling)
    assert not observed[kept:].any()
    best = torch.softmax(LOGITS.double()[:kept] / sampling.get("temperature", 1.0), -1)
    assert chi_square(observed[:kept], best) < 21.1


def test_a_nucleus_wider_than_the_first_candidates_is_kept_whole() -> None:
    """1000 equal tokens and top_p 0.8: equals of the last one kept are kept too, so all 1000 are."""
    observed = counts(torch.zeros(1000), 3000, top_p=0.8)
    assert int((observed > 0).sum()) > 900
    sloped = torch.linspace(0, -0.001, 1000)
    assert int(counts(sloped, 3000, top_p=0.5)[500:].sum()) == 0
    assert int((counts(sloped, 3000, top_p=0.5)[:499] > 0).sum()) > 480


def test_greedy_rows_take_the_best_token_whatever_else_is_asked() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    picks = [pick(Sampling(temperature=1e-6, top_k=3, top_p=0.1, seed=row)) for row in range(6)]
    assert tokens(logits, picks) == logits.argmax(-1).tolist()


@pytest.mark.skipif(native.library() is None, reason="no compiler here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 5, 64, 1001])
def test_the_kernel_draws_what_torch_does(vocabulary: int, dtype: torch.dtype) -> None:
    """It knows no float64, of which torch makes the same float32."""
    kinds = [
        {},
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.8},
        {"top_k": 40, "top_p": 0.5},
        {"temperature": 0.0},
    ]
    picks = [pick(Sampling(seed=row, **kinds[row % 6]), row) for row in range(60)]  # type: ignore[arg-type]
    part = torch.randn(60, vocabulary + 3, generator=torch.Generator().manual_seed(2))[:, 3:] * 4
    logits = part.to(dtype)
    logits[7, vocabulary // 2] = torch.nan
    logits[8, 0] = torch.inf
    assert tokens(logits, picks) == tokens(logits.double(), picks)
    assert [row for row, token in enumerate(tokens(logits, picks)) if token == NOT_FINITE] == [7, 8]


def test_a_row_draws_the_same_alone_and_in_a_crowd() -> None:
    logits = torch.randn(7, 400, generator=torch.Generator().manual_seed(1)) * 3
    samplings = [
        GREEDY,
        Sampling(seed=1),
        Sampling(seed=1, top_k=5),
        Sampling(seed=2, top_p=0.9),
        Sampling(seed=3, top_p=0.999, temperature=3.0),
        Sampling(seed=4, top_k=300, top_p=0.5, logprobs=2),
        GREEDY,
    ]
    picks = [pick(sampling, index=at) for at, sampling in enumerate(samplings)]
    alone = [tokens(logits[at : at + 1], [picks[at]])[0] for at in range(7)]
    assert tokens(logits, picks) == alone
    assert tokens(logits.flip(0), picks[::-1]) == alone[::-1]


def test_log_probabilities_are_of_the_raw_logits() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    picks = [
        pick(Sampling(temperature=0.3, top_k=2, logprobs=4, seed=5)),
        pick(Sampling()),
        pick(Sampling(temperature=0, logprobs=0), banned=[int(logits[2].argmax())]),
    ]
    draws = draw(logits, picks)
    want = torch.log_softmax(logits, -1)
    best = want[0].topk(4)
    assert draws.logprobs == pytest.approx([want[0, draws.tokens[0]].item(), 0.0, want[2, draws.tokens[2]].item()])
    assert [token for token, _ in draws.alternatives[0]] == best.indices.tolist()
    assert [logprob for _, logprob in draws.alternatives[0]] == pytest.approx(best.values.tolist())
    assert draws.alternatives[1:] == [[], []]


def test_banned_tokens_are_not_drawn() -> None:
    assert tokens(LOGITS[None], [pick(GREEDY, banned=[0, 1])]) == [2]
    picks = [pick(Sampling(seed=seed), banned=[0]) for seed in range(200)]
    assert 0 not in tokens(LOGITS.expand(200, -1), picks)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.5), Sampling(logprobs=1)])
def test_where_logits_are_not_finite_nothing_is_drawn(poison: float, sampling: Sampling) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 3] = poison
    first, second, third = tokens(logits, [pick(sampling, row=row) for row in (10, 11, 12)])
    assert second == NOT_FINITE
    assert first >= 0 <= third


def tell_peaks() -> None:
    """Of the samplings that the start tries and of others, the bytes that a draw takes: each in a process that has
    freed nothing yet, or it would not be seen what was taken up again."""
    torch.set_num_threads(1)
    num_rows, vocabulary = 200, 32_000
    others = Sampling(temperature=50.0, top_p=0.99, logprobs=5), Sampling(top_p=0.5), Sampling(top_k=300)
    for samplings in (dearest(num_rows, vocabulary), *([other] * num_rows for other in others)):
        if not os.fork():
            logits = torch.randn(num_rows, vocabulary).to(torch.bfloat16)
            picks = [Pick(at, sampling, 0, []) for at, sampling in enumerate(samplings)]
            print(Host().peak_bytes(partial(draw, logits, picks)), flush=True)
            os._exit(0)
        os.wait()


@pytest.mark.timeout(60)  # a process that loads torch
def test_no_sampling_takes_more_memory_than_the_one_that_the_start_tries() -> None:
    command = [sys.executable, "-c", f"from {__name__} import tell_peaks; tell_peaks()"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    tried_bytes, *others_bytes = map(int, told.stdout.split())
    assert len(others_bytes) == 3 and max(others_bytes) < 1.2 * tried_bytes


def test_rows_that_are_filtered_one_after_the_other_draw_what_they_do_alone() -> None:
    """As many logits as these are not sorted at once; the last two have wide nuclei."""
    logits = torch.randn(3, 2_200_000)
    samplings = Sampling(top_k=2), Sampling(top_p=0.01), Sampling(top_p=0.2)
    picks = [Pick(at, sampling, 0, []) for at, sampling in enumerate(samplings)]
    alone = [draw(logits[at : at + 1], [pick]).tokens[0] for at, pick in enumerate(picks)]
    assert draw(logits, picks).tokens == alone
    for at, kept in enumerate((2, 10_000, 200_000)):
        assert alone[at] in logits[at].topk(kept).indices
    assert alone[2] not in logits[2].topk(256).indices
