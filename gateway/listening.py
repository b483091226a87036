"""Where somebody may be in the way: a port, told in one line whoever finds it taken."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Failed


@contextmanager
def told(host: str, port: int) -> Iterator[None]:
    """What keeps us from listening becomes a Failed."""
    try:
        yield
    except OSError as error:
        # Names that nobody knows have numbers of their own; else the text may repeat the address.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise Failed(f"cannot listen on {host}:{port}: {reason}; --host and --port choose another") from None
