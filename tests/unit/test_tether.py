"""A child becomes its program, tied to its parent."""

import subprocess
from collections.abc import Sequence

from gateway.process import tethered


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_it_becomes_the_program() -> None:
    assert run(tethered(["echo", "one", "two words"])) == (0, "one two words\n", "")
    assert run(tethered(["sh", "-c", "exit 7"]))[0] == 7


def test_a_program_that_is_not_there_is_named() -> None:
    assert run(tethered(["no-such-program"])) == (1, "", "no-such-program: No such file or directory\n")


def test_nothing_starts_for_a_parent_that_is_gone() -> None:
    *launcher, parent, program = tethered(["echo"])
    assert run([*launcher, "1", program]) == (1, "", ""), parent
