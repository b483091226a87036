"""Chats as rows of tokens: encoded as the template writes them, packed whole, blind to their neighbours."""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from tokenizers import Tokenizer

from triton_backend.demo import corpus
from triton_backend.demo.vocabulary import END, token


@dataclass(frozen=True, slots=True)
class Document:
    """One example in tokens; `weights[i]` says how much predicting token i counts."""

    ids: list[int]
    weights: list[float]


def encode(tokenizer: Tokenizer, chat: corpus.Chat) -> Document:
    """The chat as its template writes it."""
    ids: list[int] = []
    weights: list[float] = []
    end = token(tokenizer, END)
    for message in chat:
        encoded = tokenizer.encode(message.content)
        body = [*encoded.ids, end]
        learned = message.role in ("assistant", "text")
        if message.role != "text":
            ids.append(token(tokenizer, f"<|{message.role}|>"))
            weights.append(0.0)
        ids += body
        weights += _weights(encoded.tokens) if learned else [0.0] * len(body)
    return Document(ids, weights)


# Marks after which an answer may stop, as byte-level tokens write them.
_STOPS = frozenset('.,!?:"Ċ')


def _weights(tokens: list[str]) -> list[float]:
    """What each token of an answer and its end count. A token of a long answer counts less, or stories would drown
    the sums; more where the answer could stop or go on, for there its length is decided; the first in full."""
    size = len(tokens) + 1
    stops = [text[-1] in _STOPS for text in tokens]
    decisive = [here or before for before, here in pairwise([*stops, True])]
    return [1.0, *(size**-0.2 if weighty else size**-0.4 for weighty in decisive)]


def pack(documents: Iterable[Document], row_tokens: int, pool: int = 256) -> Iterator[list[Document]]:
    """Rows of whole documents: first fit, longest first, within a pool: full, and still mixed."""
    stream = iter(documents)
    while batch := list(itertools.islice(stream, pool)):
        rows: list[list[Document]] = []
        room: list[int] = []
        for document in sorted(batch, key=lambda d: -len(d.ids)):
            size = len(document.ids)
            if size > row_tokens:
                continue
            place = next((i for i, free in enumerate(room) if free >= size), len(rows))
            if place == len(rows):
                rows.append([])
                room.append(row_tokens)
            rows[place].append(document)
            room[place] -= size
        yield from rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows as tensors. Documents of a row do not see each other: `owners` numbers them from one."""

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        same = self.owners[:, None, :, None] == self.owners[:, None, None, :]
        return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


def to_rows(packed: list[list[Document]], row_tokens: int) -> Rows:
    shape = (len(packed), row_tokens)
    ids, positions, owners = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(shape)
    for r, documents in enumerate(packed):
        at = 0
        for number, document in enumerate(documents, 1):
            span = slice(at, at := at + len(document.ids))
            ids[r, span] = torch.tensor(document.ids)
            weights[r, span] = torch.tensor(document.weights)
            positions[r, span] = torch.arange(len(document.ids))
            owners[r, span] = number
    return Rows(ids, positions, weights, owners)


def shuffled(rows: Iterator[list[Document]], seed: int, pool: int = 256) -> Iterator[list[Document]]:
    """Packing leaves rows of long answers in front; this spreads them."""
    rng = random.Random(seed)
    while chunk := list(itertools.islice(rows, pool)):
        rng.shuffle(chunk)
        yield from chunk
