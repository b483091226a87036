"""What was found: told and saved as it comes, and as one table last."""

import json
import time
from collections.abc import Callable
from pathlib import Path


class Report:
    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._began_s = clock()
        self._rows: list[tuple[str, str, str]] = []
        self.ratios: dict[str, float] = {}
        """What the targets are about, by name."""

    def add(self, part: str, what: str, figure: str) -> None:
        self._rows.append((part, what, figure))
        print(f"[{self._clock() - self._began_s:5.0f} s] {part}: {what}: {figure}", flush=True)
        if self._path:
            self._path.write_text(json.dumps({"rows": self._rows, "ratios": self.ratios}, indent=1))

    def table(self) -> str:
        header = ("part", "what", "figure")
        widths = [max(len(row[at]) for row in (header, *self._rows)) for at in range(2)]
        lines = [f"| {part:{widths[0]}} | {what:{widths[1]}} | {figure} |" for part, what, figure in self._rows]
        rule = f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|---|"
        return "\n".join([f"| {header[0]:{widths[0]}} | {header[1]:{widths[1]}} | {header[2]} |", rule, *lines])
