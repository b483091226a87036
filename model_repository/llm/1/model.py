"""What Triton loads; everything is in triton_backend.adapter."""

from triton_backend.adapter import TritonPythonModel

__all__ = ["TritonPythonModel"]
