"""Steps as they were run: how large each was and how long it took.  A cost model is fitted to them."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from triton_backend.memory import Grouped, Layout
from triton_backend.plan import Plan

_BUFFERED = 256
"""Steps between two writes."""


class EngineRecord(msgspec.Struct, frozen=True):
    """Whose steps they are."""

    layout: Layout
    kv_bytes: int
    chunk_tokens: int | None = None
    """Of prompts in one step, at most; None: it was not told."""


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    seconds: float
    """From the look at what there is to run to the message about it."""
    rows: int
    """That drew a further token; 0: only prompts were run."""
    context_tokens: int
    """Held by those rows."""
    groups: int
    """Groups by capacity in which those rows lay; 0 if the engine keeps none."""
    tokens: int
    """Of prompts, padding included; 0: none were run."""
    squares: int
    """Growth of the sum of squared prefilled lengths, padding included."""


def size(plan: Plan, rooms: Mapping[int, int], layout: Layout) -> tuple[int, int, int, int, int]:
    """A StepRecord's figures but its time, before the step is run.  `rooms` are the rows' tokens of room."""
    groups = {rooms[row.row] for row in plan.decode} if isinstance(layout, Grouped) else ()
    newest = len(plan.decode), sum(row.held_tokens for row in plan.decode), len(groups)
    if (chunk := plan.prefill) is None:
        return *newest, 0, 0
    return *newest, chunk.tokens, chunk.squares


class Recorder:
    """Writes a file: the engine's record, then those of its steps, each a line of JSON."""

    def __init__(self, path: Path, engine: EngineRecord) -> None:
        """Raises OSError."""
        self._file = path.open("wb")
        self._lines = [msgspec.json.encode(engine)]

    def note(self, step: StepRecord) -> None:
        self._lines.append(msgspec.json.encode(step))
        if len(self._lines) >= _BUFFERED:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            self._file.writelines(line + b"\n" for line in self._lines)
            self._file.flush()
            self._lines = []

    def close(self) -> None:
        self.flush()
        self._file.close()


def read(path: Path) -> tuple[EngineRecord, list[StepRecord]]:
    """What a Recorder wrote.  Raises OSError, msgspec.MsgspecError."""
    first, *lines = path.read_bytes().splitlines()
    decode = msgspec.json.Decoder(StepRecord).decode
    return msgspec.json.decode(first, type=EngineRecord), [decode(line) for line in lines]
