"""The README's settings table is the settings tree."""

from pathlib import Path

from pydantic import ByteSize

from gateway import options

README = Path(__file__).parents[2] / "README.md"


def row(option: options.Option) -> str:
    default = options.value_of(options.DEFAULTS, option)
    if option.name == "model":
        default = "the demo model"
    elif isinstance(default, ByteSize):
        default = default.human_readable()
    elif isinstance(default, tuple):
        default = ", ".join(map(str, default))
    meaning = " ".join((option.field.description or "").split())
    return f"| `{option.flag}` | {'' if default is None else default} | {meaning} |"


def table() -> str:
    return "\n".join(["| Flag | Default | Meaning |", "|---|---|---|", *map(row, options.OPTIONS.values())])


def test_the_settings_table_is_complete() -> None:
    assert table() in README.read_text(), f"put this table into README.md:\n\n{table()}"
