"""The kernels' library: built once, read from nobody else's files, and done without where it cannot be built."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triton_backend.native import NotBuilt, load

ANSWER = "int answer(void) { return 42; }"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text('#include "answer.h"\n' + ANSWER)
    (folder / "answer.h").write_text("")
    return folder


def test_a_library_is_kept_and_found_again_by_us_alone(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    with ThreadPoolExecutor() as pool:
        loaded = [pool.submit(load, sources, folder) for _ in range(4)]
        assert [library.result().answer() for library in loaded] == [42] * 4
    (kept,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o700
    before = kept.stat()
    assert load(sources, folder).answer() == 42
    assert kept.stat() == before


def test_another_source_or_header_is_another_library(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert load(sources, folder).answer() == 42
    (sources / "answer.c").write_text(ANSWER.replace("42", "43"))
    assert load(sources, folder).answer() == 43
    (sources / "answer.h").write_text("// changed")
    assert load(sources, folder).answer() == 43
    assert len(list(folder.iterdir())) == 3


def spoiled(sources: Path, folder: Path) -> Path:
    """The library's place in the folder, with something else in it."""
    load(sources, folder)
    (kept,) = folder.iterdir()
    kept.unlink()  # The one that was loaded lives on.
    kept.write_bytes(b"no library")
    return kept


@pytest.mark.parametrize("open_to", [0o770, 0o707])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_write_is_not_loaded(sources: Path, tmp_path: Path, what: str, open_to: int) -> None:
    folder = tmp_path / "cache"
    kept = spoiled(sources, folder)
    (folder if what == "folder" else kept).chmod(open_to)
    assert load(sources, folder).answer() == 42
    assert kept.read_bytes() == b"no library"


def test_a_folder_that_cannot_be_made_or_is_not_named_in_full_is_done_without(
    sources: Path, tmp_path: Path
) -> None:
    for folder in (sources / "answer.c" / "cache", Path("cache")):
        assert load(sources, folder).answer() == 42
        assert not folder.exists()


def test_without_a_library_it_is_said_why(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match="no-such-compiler"):
        load(sources, tmp_path, "no-such-compiler")
    (sources / "wrong.c").write_text("int wrong(")
    with pytest.raises(NotBuilt, match=r"gcc: .*wrong\.c"):
        load(sources, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sources"}


def test_what_another_user_owns_is_not_loaded(sources: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    spoiled(sources, tmp_path / "cache")
    os.chown(tmp_path / "cache", 12345, -1)
    assert load(sources, tmp_path / "cache").answer() == 42
