"""`bucketserve up` with keys: from a file that changes while it serves, and from Redis."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.keyring import digest
from tests.stack.serving import Serving, eventually

pytestmark = pytest.mark.timeout(120)


def write(file: Path, **stanzas: str) -> None:
    text = [f'[{name}]\nsha256 = "{digest(f"bs-{name}".encode())}"\n{rest}\n' for name, rest in stanzas.items()]
    file.write_text("\n".join(text))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    write(file, free="", seldom="requests_per_minute = 2", short="tokens_per_minute = 50")
    return file


@pytest.fixture(scope="module")
def locked(file: Path) -> Iterator[Serving]:
    with Serving("--keys-file", str(file), "--redis-keys", "true") as up:
        yield up


def ask(locked: Serving, key: str, **fields: object) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    body = {"model": locked.model, "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True} | fields
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{locked.url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers)


def test_a_quota_is_used_up_and_said_to_be(locked: Serving) -> None:
    answers = [ask(locked, "bs-seldom") for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, headers in answers] == ["1", "0", "0"]
    assert 55 <= int(answers[-1][1]["Retry-After"]) <= 61
    assert ask(locked, "bs-free")[0] == 200
    assert "x-ratelimit-limit-requests" not in ask(locked, "bs-free")[1]


def test_what_an_answer_did_not_use_comes_back(locked: Serving) -> None:
    status, headers = ask(locked, "bs-short", max_tokens=47, stop=list("aeiou .,"))
    assert (status, headers["x-ratelimit-remaining-tokens"]) == (200, "0")
    assert ask(locked, "bs-short", max_tokens=10)[0] == 200


def test_a_file_that_changes_is_followed_and_a_broken_one_is_not(locked: Serving, file: Path) -> None:
    good = file.read_text()
    assert ask(locked, "bs-late")[0] == 401
    with file.open("a") as more:
        more.write(f'[late]\nsha256 = "{digest(b"bs-late")}"\n')
    assert eventually(lambda: ask(locked, "bs-late")[0] == 200, 10)
    file.write_text("free = =")
    assert ask(locked, "bs-late")[0] == 200
    file.write_text(good)
    assert eventually(lambda: ask(locked, "bs-late")[0] == 401, 10)
    assert ask(locked, "bs-free")[0] == 200


def test_a_key_in_redis_comes_and_goes(locked: Serving) -> None:
    def key(*argv: str) -> str:
        command = [sys.executable, "-m", "gateway", "key", *argv, "--redis", locked.redis_url]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()[-1]

    made = key("remote", "--max-streams", "1")
    assert eventually(lambda: ask(locked, made)[0] == 200, 10)
    with pytest.raises(subprocess.CalledProcessError):
        key("remote")
    former, made = made, key("remote", "--replace")
    assert eventually(lambda: [ask(locked, each)[0] for each in (former, made)] == [401, 200], 10)
    key("remote", "--remove")
    assert eventually(lambda: ask(locked, made)[0] == 401, 10)
    assert made not in locked.output
