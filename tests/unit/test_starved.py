"""Out of memory for real: torch's own allocator fails, since the process may not have more address space."""

import json
import os
import subprocess
import sys

import pytest

from tests.unit import starved

TIMEOUT_S = 60
"""Importing torch and transformers takes seconds, more on a busy machine."""


@pytest.mark.timeout(TIMEOUT_S)
def test_a_process_that_is_out_of_memory_loses_no_row_and_changes_no_token() -> None:
    # Every tensor that counts is mapped by itself: what earlier ones left in the heap does not help.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-m", starved.__name__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["exact"], found["finished"], found["attempts"]) == (starved.ROWS,) * 3
    counts = found["out_of_memory"]
    num_prefills = len(counts) - found["decodes"]
    assert counts[num_prefills - 1] > 0
    assert counts[-1] > counts[num_prefills - 1]
