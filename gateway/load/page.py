"""One HTML page that holds everything: no script, no style sheet, no image from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #888; font-weight: 600 }
.note { background: #fff4d6; padding: .5rem .8rem; border-left: 4px solid #e0a800 }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem }
img { width: 100%; height: auto }
"""


class Table(NamedTuple):
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str],
    tables: Sequence[Table],
    pictures: Mapping[str, bytes],
) -> str:
    """`pictures` are PNGs by their description."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            "<p>" + "<br>\n".join(f"{escape(name)}: {escape(value)}" for name, value in facts.items()) + "</p>",
            *(f'<p class="note">{escape(note)}</p>' for note in notes),
            *map(_table, tables),
            '<h2>Pictures</h2>\n<div class="pictures">',
            *(_picture(text, png) for text, png in pictures.items()),
            "</div>\n</body>\n</html>\n",
        ]
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f"<h2>{escape(table.title)}</h2>\n"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _picture(text: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
