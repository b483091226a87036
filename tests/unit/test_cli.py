"""The command line up to the point where a process would start."""

import asyncio
import re
import socket
import subprocess
from pathlib import Path

import pytest

from gateway import app, local
from gateway.__main__ import main
from gateway.errors import Failed
from gateway.listening import told
from gateway.options import DEFAULTS, OPTIONS, value_of
from gateway.settings import Settings
from tests.unit.tokenizers_made import byte_level, save

ROOT = Path(__file__).parents[2]


def error_of(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 2) -> str:
    assert main(argv, {}) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"bucketserve: .+\n", captured.err), captured.err
    return captured.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "COMMAND"),
        (("ups",), "invalid choice: 'ups'"),
        (("up", "--prot", "1"), "no option --prot; did you mean --port?"),
        (("up", "--prot=1"), "no option --prot; did you mean --port?"),
        (("up", "here"), "unexpected argument 'here'"),
        (("config", "--port"), "--port: expected one argument"),
        (("config", "--port", "x"), "port = 'x' (from --port)"),
        (("up", "--gateways", "2", "--port", "65534"), "need as many ports after 65534"),
        (("gateway",), "needs --redis"),
        (("gateway", "--redis", "redis://h"), "needs --triton"),
        (("fit", "--model", "m", "--out", "o", "--dtype", "foo"), "--dtype: invalid choice: 'foo'"),
        (("fit", "--model", "m", "--out", "o", "--device", "gpu"), "--device: 'gpu' is not cpu, cuda or cuda:N"),
    ],
)
def test_wrong_calls_get_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str
) -> None:
    assert words in error_of(capsys, *argv)


def test_a_port_in_use_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = error_of(capsys, "up", "--model", str(tmp_path), "--port", port, status=1)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; --host and --port" in said


@pytest.mark.parametrize(
    "argv", [("up",), ("gateway", "--redis", "redis://h", "--triton", "h:1"), ("fit", "--out", "cost.json")]
)
@pytest.mark.parametrize("folder", ["./nowhere", "/nowhere", "~nobody-of-this-name/nowhere"])
def test_a_missing_model_folder_is_told(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], folder: str
) -> None:
    assert f"no model folder {folder}; --model" in error_of(capsys, *argv, "--model", folder, status=1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"no config.json in {folder}; --model takes a folder in Hugging Face format"),
        ({"config.json": "{}"}, r"no *.safetensors in {folder}; --model takes a folder in Hugging Face format"),
        ({"a.safetensors": "", "config.json": "{"}, "{folder}/config.json is not JSON (Expecting property name"),
        (
            {"a.safetensors": "", "config.json": "{}", "tokenizer.json": "version https://git-lfs.github.com/"},
            "{folder}/tokenizer.json is not JSON (Expecting value: line 1 column 1 (char 0)); fetch it again",
        ),
    ],
    ids=["empty", "no weights", "cut off", "a pointer to a large file"],
)
def test_what_a_model_folder_lacks_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, files: dict[str, str], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    port = str(local.free_port())
    said = error_of(capsys, "up", "--model", str(tmp_path), "--port", port, status=1)
    assert words.replace("{folder}", str(tmp_path)) in said


def failure(port: int, **given: str) -> str:
    """Why a gateway does not serve, after all that the command line looks at before."""
    settings = Settings.model_validate({"redis": "redis://127.0.0.1:1", "port": port, **given})
    with pytest.raises(Failed) as caught:
        asyncio.run(app.serve(settings))
    return str(caught.value)


@pytest.mark.timeout(60)  # the tokenizer's library takes seconds to load
def test_a_gateway_that_cannot_listen_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert failure(port) == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use; --host and --port choose another"
        )


def test_a_host_that_nobody_knows_is_told() -> None:
    with pytest.raises(Failed, match=r"^cannot listen on nosuch:80: Name unknown; --host"), told("nosuch", 80):
        raise socket.gaierror(-2, "Name unknown")


@pytest.mark.timeout(60)
def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    said = failure(1, model=str(tmp_path))
    assert said.startswith(f"no tokenizer in {tmp_path}: ")
    assert said.endswith("; --model wants a tokenizer.json")
    assert "\n" not in said


def test_a_chat_template_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    said = failure(1, model=save(byte_level(), tmp_path, "{% for message in messages %}\n{{ message"))
    assert said.startswith(f"line 2 of the chat template in {tmp_path} is no Jinja: ")


@pytest.mark.parametrize("command", ["up", "gateway", "config"])
def test_help_has_every_setting_with_its_default(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS.values():
        assert f"{option.flag} {option.unit} " in text
        assert option.env in text
        default = value_of(DEFAULTS, option)
        assert not isinstance(default, float) or f"{option.env}; default: {default})" in text


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"], {})
    assert caught.value.code == 0
    assert re.fullmatch(r"bucketserve \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_config_prints_flags_and_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--port", "81", "--triton", "a:1", "--triton", "b:2"], {}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "port = 81  # --port" in lines
    assert 'triton = ["a:1", "b:2"]  # --triton' in lines
    assert 'host = "127.0.0.1"  # default' in lines


def test_make_alone_lists_the_targets() -> None:
    out = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert {"help", "setup", "up", "test", "check", "clean"} <= set(re.findall(r"^([a-z]+) {2,}\S", out, re.M))
