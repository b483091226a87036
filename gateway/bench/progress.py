"""Progress on a terminal, with live counts."""

from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]

from gateway.load.record import Ending


class Bar:
    """One rate's."""

    def __init__(self, total: int, rate: float) -> None:
        # disable=None: nothing where nobody watches.
        self._bar: tqdm[None] = tqdm(total=total, unit="req", desc=f"{rate:.3g} req/s", disable=None)
        self._counts = dict.fromkeys(("running", *Ending), 0)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def sent(self) -> None:
        self._counts["running"] += 1

    def ended(self, how: Ending) -> None:
        self._counts["running"] -= 1
        self._counts[how] += 1
        shown = {name: count for name, count in self._counts.items() if count}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
