"""What reaches a log, and what must not."""

import subprocess
import sys

import pytest

FAILING = """
import structlog
from gateway import logs

logs.configure("info", "%s")

def serve(prompt):
    return 1 / 0

try:
    serve("".join(["secret", "-", "prompt"]))
except ZeroDivisionError as error:
    structlog.get_logger().error("unexpected error", exc_info=error)
"""


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_tells_where_and_no_contents(format: str) -> None:
    run = subprocess.run([sys.executable, "-c", FAILING % format], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in run.stderr and "in serve" in run.stderr
    assert "secret-prompt" not in run.stderr
