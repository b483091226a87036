"""Runs the embedded servers over the stand-in engine (standin/1/)."""

import shutil
from pathlib import Path

from gateway import embedded

HERE = Path(__file__).parent


def template(folder: Path) -> Path:
    """A model folder with the committed config and the stand-in's code."""
    shutil.copytree(HERE / "standin", folder)
    shutil.copy(embedded.MODEL / "config.pbtxt", folder)
    return folder
