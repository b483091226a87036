"""Recorded requests, from a CSV file with a header that names at least arrival_s, prompt_tokens, output_tokens.

`arrival_s` may be empty in all rows: then the trace has lengths only, and arrivals come from a process.  Further
columns are ignored.  A name that ends in .gz is unpacked on the way.
"""

import csv
import gzip
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from gateway.load.arrivals import LoadError
from gateway.load.workload import Floats, Generator, Ints, Lengths, TrafficClass

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A Source: as many requests as asked for, by repeating the whole trace."""

    arrival_s: Floats | None
    """From 0, ascending."""
    prompt_tokens: Ints
    output_tokens: Ints
    classes: tuple[TrafficClass, ...] = (TrafficClass("default"),)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def period_s(self) -> float:
        """From one repetition's start to the next one's: the span and one mean gap, so that the rate stays."""
        assert self.arrival_s is not None
        gaps = max(len(self) - 1, 1)
        return float(self.arrival_s[-1]) * (gaps + 1) / gaps

    def lengths(self, num_requests: int, rng: Generator) -> Lengths:
        return Lengths(
            np.resize(self.prompt_tokens, num_requests),
            np.resize(self.output_tokens, num_requests),
            np.zeros(num_requests, dtype=np.int64),
        )

    def times(self, num_requests: int) -> Floats | None:
        if self.arrival_s is None:
            return None
        repetition = np.arange(num_requests) // len(self)
        return np.resize(self.arrival_s, num_requests) + repetition * self.period_s


def read(path: Path) -> Trace:
    """Raises LoadError, which names line and column."""
    try:
        with _opened(path) as file:
            return _read(file, path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LoadError(f"trace {path}: {reason}") from None


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="")


def _read(file: IO[str], path: Path) -> Trace:
    arrivals, prompts, outputs = array("d"), array("q"), array("q")
    for line, arrival, prompt, output in _rows(file, path):
        if bool(arrival) != (len(arrivals) == len(prompts)) and len(prompts):
            raise LoadError(f"trace {path}, line {line}, arrival_s: empty in some rows only")
        if arrival:
            arrivals.append(_seconds(arrival, f"trace {path}, line {line}"))
        prompts.append(_count(prompt, f"trace {path}, line {line}, prompt_tokens"))
        outputs.append(_count(output, f"trace {path}, line {line}, output_tokens"))
    if not prompts:
        raise LoadError(f"trace {path}: no rows")
    return _sorted(np.array(arrivals), np.array(prompts, dtype=np.int64), np.array(outputs, dtype=np.int64))


def _rows(file: IO[str], path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(line, arrival_s, prompt_tokens, output_tokens) as they are written."""
    reader = csv.reader(file)
    header = next(reader, [])
    for name in COLUMNS:
        if name not in header:
            raise LoadError(f"trace {path}, line 1: no column {name}")
    where = [header.index(name) for name in COLUMNS]
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise LoadError(f"trace {path}, line {reader.line_num}: {len(row)} columns instead of {len(header)}")
        arrival, prompt, output = (row[index] for index in where)
        yield reader.line_num, arrival, prompt, output


def _sorted(arrivals: Floats, prompts: Ints, outputs: Ints) -> Trace:
    if not len(arrivals):
        return Trace(None, prompts, outputs)
    order = np.argsort(arrivals, kind="stable")
    return Trace(arrivals[order] - arrivals[order[0]], prompts[order], outputs[order])


def _seconds(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise LoadError(f"{where}, arrival_s: {text!r} is no number of seconds")
    return seconds


def _count(text: str, where: str) -> int:
    """At least 1: some sources hold empty prompts or answers, and neither can be asked for."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise LoadError(f"{where}: {text!r} is no whole number")
    return max(int(text), 1)
