"""A run's files, and what is left when a run was killed.

Whoever can take the lock of a run's folder knows that its run is over, and clears away what it left:
processes, found by the marker in their environment, shared memory, found by the prefix that the folder's
path gives, and files.  A janitor waits beside the run to do so: a process that hears the end of a pipe when
the run ends, however it ends.  If that was killed too, the next run does it.
"""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from gateway.errors import Failed
from gateway.process import kill_marked, marked

SHARED_MEMORY = Path("/dev/shm")
DEATH_TIMEOUT_S = 5.0
_FRESH = "run-"


class FolderInUse(Failed):
    """Another run has the folder, or somebody keeps something else there."""


class RunFolder:
    def __init__(self, given: Path | None) -> None:
        """A given folder is kept, with its logs; by default it is a fresh one, and removed."""
        self._given = given
        self._base = Path(tempfile.gettempdir()) / f"bucketserve-{os.getuid()}"
        self.path = given.resolve() if given else self._base
        self._lock: int | None = None
        self._janitor: subprocess.Popen[bytes] | None = None

    @property
    def shm_prefix(self) -> str:
        return shm_prefix(self.path)

    def open(self) -> None:
        """Also clears away what earlier runs left.  Raises FolderInUse, Failed."""
        try:
            if self._given:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._take_given()
            else:
                make_own(self._base)
                self._take_fresh()
        except OSError as error:
            where = error.filename or self.path
            raise Failed(f"cannot write {where}: {error.strerror}; --run-folder names another folder") from None
        self._janitor = _start_janitor(self.path)

    def close(self) -> None:
        """End what still runs, remove everything but a given folder's logs."""
        assert self._lock is not None
        assert self._janitor is not None
        os.close(self._lock)
        sweep(self.path)
        self._janitor.communicate()

    def _take_given(self) -> None:
        # What a run leaves is removed by names that others use as well.
        if any(self.path.iterdir()) and not (self.path / "lock").exists():
            raise FolderInUse(f"{self.path} is neither empty nor an earlier run's: choose another")
        self._take()

    def _take_fresh(self) -> None:
        # Held until our folder is locked, so that nobody takes it for a leftover.
        with _locked(self._base / "lock"):
            for folder in self._base.glob(f"{_FRESH}*"):
                sweep(folder)
            self.path = Path(tempfile.mkdtemp(prefix=_FRESH, dir=self._base))
            self._take()

    def _take(self) -> None:
        self._lock = _try_lock(self.path / "lock")
        if self._lock is None:
            raise FolderInUse(f"{self.path} belongs to a run that goes on")
        _clear(self.path)


def make_own(folder: Path) -> None:
    """Where everybody may write, somebody else may have made the folder first, or a link of its name: what is
    started from it would be his."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise FolderInUse(f"{folder} is not ours alone: remove it, or set TMPDIR or --run-folder")


def sweep(folder: Path, patience_s: float = 0.0) -> None:
    """Clear away what a run left, if it is over or ends within `patience_s`."""
    deadline = time.monotonic() + patience_s
    lock = None
    while folder.exists() and (lock := _try_lock(folder / "lock")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if lock is not None:
        _clear(folder)
        if folder.name.startswith(_FRESH):
            shutil.rmtree(folder)
        os.close(lock)


def _start_janitor(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.run_folder", str(folder)],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )


def _clear(folder: Path) -> None:
    kill_marked(folder)
    deadline = time.monotonic() + DEATH_TIMEOUT_S
    while marked(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    clear_shared_memory(shm_prefix(folder))
    for rendered in ("models", "backends"):
        shutil.rmtree(folder / rendered, ignore_errors=True)


def clear_shared_memory(prefix: str) -> None:
    """What a Triton that was killed could not."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink()


def shm_prefix(folder: Path) -> str:
    return f"bucketserve-{blake2b(str(folder).encode(), digest_size=6).hexdigest()}-"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, or None if another process does."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _open_lock(path: Path) -> int:
    """A link is not followed, and nothing is lost of what is there."""
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)


if __name__ == "__main__":
    sys.stdin.read()
    # A process that dies may close its end of the pipe a moment before it lets go of the lock.
    sweep(Path(sys.argv[1]), DEATH_TIMEOUT_S)
