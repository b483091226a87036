"""Pictures of reports, as PNG bytes.  matplotlib is heavy and optional: it is loaded when the first is drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gateway.load.arrivals import LoadError
from gateway.load.occupancy import Occupancy
from gateway.load.workload import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[float, float]]
"""Points (x, attainment)."""

_SIZE_INCHES = (7.0, 4.2)
_DPI = 110
_CDF_POINTS = 500
_SMALLEST_S = 1e-4
_MARKERS = "osD^vPX*"


def require() -> None:
    """Raises LoadError if the pictures cannot be drawn, so that nobody measures for an hour to learn it then."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise LoadError("plots need matplotlib: pip install 'bucketserve[bench]'") from None


def attainment(curves: Mapping[str, Curve], rate: str = "offered rate (requests/s)", target: float = 0.9) -> bytes:
    """Attainment against a rate of that name, one line for each label; `target` is marked."""
    canvas = Canvas("SLO attainment", rate, "requests within both targets (%)")
    _attainment_lines(canvas.axes, curves, target)
    canvas.axes.set_xlim(left=0)
    return canvas.png()


def slo_scale(curves: Mapping[str, Curve], target: float = 0.9) -> bytes:
    """Attainment if both targets were multiplied by a factor, one line for each label."""
    canvas = Canvas("SLO scale", "factor on both targets (below 1: tighter)", "requests within both targets (%)")
    _attainment_lines(canvas.axes, curves, target)
    canvas.axes.set_xscale("log", base=2)
    canvas.axes.xaxis.set_major_formatter(plain)
    return canvas.png()


def _attainment_lines(axes: "Axes", curves: Mapping[str, Curve], target: float) -> None:
    for number, (label, curve) in enumerate(curves.items()):
        x, y = zip(*sorted(curve), strict=True)
        axes.plot(x, 100 * np.array(y), marker=_MARKERS[number % len(_MARKERS)], label=label, clip_on=False)
    axes.axhline(100 * target, color="0.5", linestyle=":", linewidth=1.0)
    axes.set_ylim(0, 100)


def latency_cdf(title: str, samples_s: Mapping[str, Floats]) -> bytes:
    """Part of the requests at or below a latency, one line for each label; the axis is logarithmic, as overload
    stretches latencies a hundredfold."""
    canvas = Canvas(title, "milliseconds", "requests at or below (%)")
    parts = np.linspace(0.0, 1.0, _CDF_POINTS)
    for label, measured_s in samples_s.items():
        # An answer that ended without a token has none.
        sample_s = measured_s[~np.isnan(measured_s)]
        if len(sample_s):
            # An answer of one token takes no time per further token, and 0 has no place on the axis.
            shown_ms = 1000 * np.maximum(np.quantile(sample_s, parts), _SMALLEST_S)
            canvas.axes.plot(shown_ms, 100 * parts, label=label)
    canvas.axes.set_ylim(0, 100)
    canvas.axes.set_xscale("log")
    canvas.axes.xaxis.set_major_formatter(plain)
    return canvas.png()


def occupancy(title: str, samples: Occupancy) -> bytes:
    """Waiting requests over time, stacked by length."""
    canvas = Canvas(title, "time (s)", "requests without a token yet")
    if samples.waiting:
        colors = _shades(len(samples.waiting))
        canvas.axes.stackplot(
            samples.times_s, *samples.waiting.values(), labels=list(samples.waiting), colors=colors, step="post"
        )
        canvas.axes.set_xlim(float(samples.times_s[0]), float(samples.times_s[-1]))
    canvas.axes.set_ylim(bottom=0)
    return canvas.png()


def plain(value: float, position: float) -> str:
    return f"{value:g}"


def _shades(count: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    return [colormaps["viridis_r"](part) for part in np.linspace(0.05, 0.95, count)]


class Canvas:
    """One figure with one pair of axes, in the style that all pictures share."""

    def __init__(self, title: str, x: str, y: str) -> None:
        require()
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        self.axes = self._figure.add_subplot()
        self.axes.set(title=title, xlabel=x, ylabel=y)
        self.axes.grid(color="0.9", linewidth=0.8)
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)

    def png(self) -> bytes:
        if self.axes.get_legend_handles_labels()[1]:
            self.axes.legend(frameon=False, fontsize="small")
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()
