"""The C kernels in `kernels/`, compiled for this machine's processor when they are first needed.

The library is kept under a name that says what it was made of, so that a machine compiles it once; it is written
beside its place and then renamed, as several engines may start at once.  Without a compiler the engine runs on
torch's operators, which compute the same.

Kernels run on torch's own threads: torch, imported here, has loaded GNU's OpenMP, and a library of that name is
loaded only once.  They are called through ctypes, which lets other Python threads run meanwhile.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

TYPES = {torch.bfloat16: 0, torch.float32: 1}
"""The kernels' numbers for those they know (kernels/vectors.h)."""
SOURCES = Path(__file__).parent / "kernels"
COMPILER = "gcc"
"""Others bring an OpenMP of their own, whose threads would fight with torch's."""
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared"),
    "-Wl,-Bsymbolic",  # A kernel that calls another one means ours, whatever else in the process has its name.
)


class NotBuilt(Exception):
    """There are no kernels; the message says why."""


@cache
def library() -> ctypes.CDLL | None:
    """None, and a line in the log, where it cannot be built."""
    try:
        return load(SOURCES, _cache_folder())
    except NotBuilt as error:
        log.warning("the engine runs on torch's operators, which is slower: %s", error)
        return None


def load(sources: Path, folder: Path, compiler: str = COMPILER) -> ctypes.CDLL:
    """The library of all C files in `sources`, from `folder`, where it is built if it is not there; if the folder
    is not ours to write to, for this process only.  Raises NotBuilt."""
    try:
        name = f"{_made_of(sources, compiler)}.so"
        if _is_made(folder):
            path = folder / name
            if not path.exists():
                _build(sources, path, compiler)
            if _is_ours(path):
                return ctypes.CDLL(str(path))
        with tempfile.TemporaryDirectory() as passing:
            path = Path(passing) / name
            _build(sources, path, compiler)
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuilt(str(error)) from error


def _build(sources: Path, path: Path, compiler: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as passing:
        written = Path(passing) / path.name
        _run([compiler, *FLAGS, "-o", str(written), *map(str, sorted(sources.glob("*.c")))])
        written.chmod(0o700)
        written.replace(path)


def _made_of(sources: Path, compiler: str) -> str:
    """A hash of all that the library depends on."""
    parts = [path.read_bytes() for path in sorted(sources.glob("*.[ch]"))]
    parts += [" ".join(FLAGS).encode(), _run([compiler, "--version"]), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _processor() -> str:
    """What it can do, as far as the system says."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    features = re.search(r"^(flags|Features)\s*:.*$", cpuinfo, re.MULTILINE)
    return features[0] if features else cpuinfo


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or [f"status {done.returncode}"]
        raise NotBuilt(f"{command[0]}: {lines[0]}")
    return done.stdout


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "bucketserve"


def _is_made(folder: Path) -> bool:
    """Whether the folder is there, or could be made, for us alone to write to."""
    if not folder.is_absolute():  # XDG says so; and whoever has no home has no cache.
        return False
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return _is_ours(folder) and os.access(folder, os.W_OK | os.X_OK)


def _is_ours(path: Path) -> bool:
    """What is loaded runs as this user: nobody else may have written it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
