"""The parts of gateway/local.py that need neither Triton nor Valkey: children, run folders, rendered models."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from gateway import embedded, local, run_folder
from gateway.errors import Failed
from gateway.process import MARKER, Child, ChildDied, marked
from gateway.run_folder import SHARED_MEMORY, FolderInUse, RunFolder, shm_prefix
from triton_backend.control_groups import num_processors

STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ignoring', flush=True); signal.pause()"
)
ORPHANING = (
    "import subprocess, sys; subprocess.Popen(['sleep', '100']); print('born', flush=True); sys.stdin.read()"
)


def child(folder: Path, code: str, name: str = "it") -> Child:
    argv = [sys.executable, "-c", code]
    return Child(name, argv, {**os.environ, MARKER: str(folder)}, folder / f"{name}.log")


async def logged(child: Child, word: str) -> None:
    while word not in child.log.read_text():
        await asyncio.sleep(0.01)


def test_replicas_of_one_machine_divide_its_cores() -> None:
    assert local.threads_each(1) is None
    assert local.threads_each(2) == max(1, num_processors() // 2)
    assert local.threads_each(10_000) == 1


@pytest.mark.asyncio
async def test_a_death_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    failing = child(tmp_path, "print(*range(100), sep='\\n'); raise SystemExit(3)")
    await failing.start()
    told = await failing.died()
    assert (told.name, failing.is_running) == ("it", False)
    lines = [str(number) for number in range(80, 100)]
    assert str(told).splitlines() == [f"it exited with status 3; the end of {failing.log}:", *lines]


@pytest.mark.asyncio
async def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = child(tmp_path, STUBBORN)
    await stubborn.start()
    await logged(stubborn, "ignoring")
    await stubborn.stop(0.05)
    assert "SIGKILL" in str(await stubborn.died())


@pytest.mark.asyncio
async def test_stop_ends_grandchildren(tmp_path: Path) -> None:
    parent = child(tmp_path, ORPHANING)
    await parent.start()
    await logged(parent, "born")
    await parent.stop(1)
    async with asyncio.timeout(5):
        while marked(tmp_path):
            await asyncio.sleep(0.01)


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left = RunFolder(folder)
    left.open()
    region = SHARED_MEMORY / f"{left.shm_prefix}region"
    region.write_bytes(b"")
    (folder / "models").mkdir()
    (folder / "triton.log").touch()
    with subprocess.Popen(["sleep", "100"], env={**os.environ, MARKER: str(folder)}) as process:
        left.close()
        assert process.wait() == -signal.SIGKILL
    assert not region.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "triton.log"]


def test_the_janitor_outlives_a_killed_run(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from gateway.run_folder import RunFolder
folder = RunFolder(pathlib.Path({str(tmp_path)!r}))
folder.open()
pathlib.Path("/dev/shm", folder.shm_prefix + "region").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=embedded.ROOT, check=False)
    again = RunFolder(tmp_path)
    # The janitor may be at work and hold the lock.
    for _ in range(100):
        try:
            again.open()
            break
        except FolderInUse:
            os.sched_yield()
    assert not list(SHARED_MEMORY.glob(f"{shm_prefix(tmp_path)}*"))
    again.close()


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.open()
    with pytest.raises(FolderInUse):
        RunFolder(tmp_path).open()
    first.close()


def test_a_folder_of_somebody_s_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(FolderInUse, match="neither empty nor an earlier run's"):
        RunFolder(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("name", ["file", "file/under"])
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failed, match=r"^cannot write .+/file.*: .+; --run-folder names another folder$"):
        RunFolder(tmp_path / name).open()


@pytest.mark.asyncio
async def test_step_records_that_cannot_be_written_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stack = local.Stack(model="m", run_dir=tmp_path / "run", redis_url="redis://h", step_records=tmp_path / "file")
    with pytest.raises(Failed, match=r"^cannot write .+/file/llm.steps: .+; --step-records names the folder$"):
        await stack.__aenter__()


def test_a_fresh_folder_goes_with_its_run() -> None:
    run = RunFolder(None)
    run.open()
    assert run.path.is_dir()
    run.close()
    assert not run.path.exists()


def test_only_a_folder_of_our_own_is_taken_where_everybody_may_write(tmp_path: Path) -> None:
    ours, theirs, shared = tmp_path / "ours", tmp_path / "theirs", tmp_path / "shared"
    for _ in range(2):
        run_folder.make_own(ours)
    assert ours.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(ours)
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    shared.mkdir()
    shared.chmod(0o770)
    if os.getuid() == 0:
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 1, 1)
    else:
        theirs = Path("/usr")
    for folder in (tmp_path / "link", tmp_path / "astray", tmp_path / "file", shared, theirs):
        with pytest.raises(FolderInUse, match="is not ours alone: remove it, or set TMPDIR or --run-folder"):
            run_folder.make_own(folder)
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Failed, match=r"cannot write .*lock: "):
        RunFolder(tmp_path).open()
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_rendered_model_has_its_settings_and_no_others(tmp_path: Path) -> None:
    parameters = {"device": "cuda:1", "threads": 2, "dtype": None, "ends_server": "false", "load_timeout_s": 60}
    embedded.render_model(embedded.MODEL, "llm-1", parameters, tmp_path)
    raw = (tmp_path / "llm-1" / "config.pbtxt").read_text()
    config = text_format.Parse(raw, model_config_pb2.ModelConfig())
    given = {key: value.string_value for key, value in config.parameters.items() if value.string_value}
    assert given == {"device": "cuda:1", "threads": "2", "ends_server": "false", "load_timeout_s": "60"}
    assert (config.name, config.model_transaction_policy.decoupled, config.max_batch_size) == ("", True, 0)
    assert (tmp_path / "llm-1" / "1" / "triton_backend" / "contract.py").exists()


def test_tritons_environment_has_no_engine_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_DEVICE", "cuda:7")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine")
    env = embedded.triton_env()
    assert "ENGINE_DEVICE" not in env
    assert env["LD_LIBRARY_PATH"].endswith("nvidia_pytriton.libs:/opt/mine")
    assert env["PATH"].startswith(str(Path(sys.executable).parent))


@pytest.mark.parametrize(("visible", "seen"), [(None, "1"), ("4,GPU-5", "GPU-5")])
def test_each_triton_may_see_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert embedded.triton_env(gpu=1)["CUDA_VISIBLE_DEVICES"] == seen


def test_more_engines_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(embedded.StartFailed, match="has no GPU for engine 1"):
        embedded.triton_env(gpu=1)


async def fail() -> None:
    raise embedded.StartFailed("no Triton")


async def told_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(5)


async def die() -> None:
    raise ChildDied("valkey", "exited with status 1", Path("/nowhere"))


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (fail, 1, "bucketserve: no Triton\n"),
        (told_to_stop, 0, ""),
        (die, 1, "bucketserve: valkey exited with status 1; the end of /nowhere:\n\n"),
    ],
)
def test_supervise(capsys: pytest.CaptureFixture[str], main, status: int, said: str) -> None:  # type: ignore[no-untyped-def]
    assert local.supervise(main()) == status
    assert capsys.readouterr().err == said
