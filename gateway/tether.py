"""Becomes another program that is killed when its parent dies: `python tether.py PARENT PROGRAM [ARGUMENT ...]`.

Run as a file of its own, by an interpreter that imports nothing else.  Between fork and exec, where subprocess
would let us say so too, a process with other threads (gRPC has some) must not run Python: it crashes now and then.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # It died before the line above.
        sys.exit(1)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
