"""Finished trials on disk, so that a run that was cut off goes on where it was.

One JSON line a trial, in a file named after the code and the data that made it: results of another version are
never mixed in.
"""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec

from benchmarks.papers.trials import Trial

ROOT = Path(__file__).parents[2]
OURS = ("contenders.py", "search.py", "trials.py", "workloads.py")
CODE = (*(f"benchmarks/papers/{name}" for name in OURS), "gateway/**/*.py", "triton_backend/**/*.py")


class _Line(msgspec.Struct, frozen=True):
    key: str
    """The job's."""
    trial: Trial


class Journal:
    def __init__(self, folder: Path | None = None, version: str = "") -> None:
        """Without a folder nothing outlives the process."""
        self.finished: dict[str, Trial] = {}
        """By the job's key."""
        self._file = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"finished-{version}.jsonl").open("ab+")
            self._file.seek(0)
            written = self._file.read()
            # Killed while it wrote: the last line is not whole.
            whole = written[: written.rfind(b"\n") + 1]
            self._file.truncate(len(whole))
            lines = msgspec.json.Decoder(_Line).decode_lines(whole)
            self.finished = {line.key: line.trial for line in lines}

    def add(self, key: str, trial: Trial) -> None:
        self.finished[key] = trial
        if self._file:
            self._file.write(msgspec.json.encode(_Line(key, trial)) + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def version(data: Iterable[Path] = ()) -> str:
    """Of all code that a trial runs, and of the files it reads."""
    code = (path for pattern in CODE for path in ROOT.glob(pattern))
    digest = sha256()
    for path in (*sorted(code), *sorted(data)):
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
