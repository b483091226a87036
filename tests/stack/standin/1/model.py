"""The real adapter over the stand-in engine."""

import sys

import standin_engine

sys.modules["triton_backend.engine"] = standin_engine

from triton_backend.adapter import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
