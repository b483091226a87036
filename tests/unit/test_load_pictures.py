"""Pictures and the page that holds them."""

import base64
import re
import subprocess
import sys

import numpy as np

from gateway.load import page, plots
from gateway.load.occupancy import Occupancy

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_picture_is_a_png() -> None:
    curves = {"ours": [(2.0, 0.5), (1.0, 1.0)], "theirs": [(1.0, 0.9)]}
    waiting = Occupancy(np.array([0.0, 1.0]), {"short": np.array([1.0, 2.0]), "long": np.array([0.0, 1.0])})
    for png in (
        plots.attainment(curves),
        plots.slo_scale(curves),
        plots.latency_cdf("TTFT", {"ours": np.array([0.1, 0.2]), "none finished": np.zeros(0)}),
        plots.latency_cdf("TPOT", {"one token each": np.zeros(3)}),
        plots.occupancy("waiting", waiting),
        plots.occupancy("nothing", Occupancy(np.zeros(0), {})),
    ):
        assert png.startswith(PNG)
        assert len(png) > 5000


def test_importing_the_module_does_not_load_matplotlib() -> None:
    code = "import sys, gateway.load.plots, gateway.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_holds_everything_and_escapes_it() -> None:
    html = page.render(
        "<title>",
        {"a<b": "c&d"},
        ["<script>alert(1)</script>"],
        [page.Table("t<t", ("h<h",), (("c<c",), ("&",)))],
        {'a "picture"': PNG},
    )
    for escaped in (
        "&lt;title&gt;",
        "a&lt;b: c&amp;d",
        "&lt;script&gt;",
        "t&lt;t",
        "<th>h&lt;h</th>",
        "<td>&amp;</td>",
    ):
        assert escaped in html
    assert "<script" not in html
    assert 'alt="a &quot;picture&quot;"' in html
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert "http" not in html
