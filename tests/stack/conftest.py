"""`bucketserve up` as a user runs it, once for all tests of this part: real Valkey, real Triton, one gateway."""

import signal
from collections.abc import Iterator

import pytest

from tests.stack.serving import Serving


@pytest.fixture(scope="session")
def serving() -> Iterator[Serving]:
    """With the default memory budget, and little patience with slow bodies."""
    with Serving("--http-body-timeout-s", "2") as up:
        yield up
        assert up.stop(signal.SIGINT) == 0


@pytest.fixture(scope="session")
def tight() -> Iterator[Serving]:
    """With KV memory for a tenth of the load that the tests put on it."""
    with Serving("--kv-budget", str(TIGHT_BYTES)) as up:
        yield up
        assert up.stop(signal.SIGINT) == 0


TIGHT_BYTES = 5 * 2**20
