"""Whose key is it, wherever keys are kept: what a file may say, and what happens when it changes or breaks."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import structlog

from gateway import key_command, keyring
from gateway.__main__ import Parser, main
from gateway.errors import Failed, StoreLost
from gateway.keyring import BadKeys, Keyring, Record, digest
from gateway.quota import UNLIMITED, Quota
from gateway.request import ServiceClass, Tenant
from gateway.store.memory_tenants import MemoryTenants

PRIORITY, DEFAULT, FLEX = ServiceClass


def stanza(name: str, key: str, *lines: str) -> str:
    return "\n".join([f"[{name}]", f'sha256 = "{digest(key.encode())}"', *lines]) + "\n"


def stored(key: str) -> bytes:
    return keyring.encode(keyring.record("x", {"sha256": digest(key.encode())}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(stanza("acme", "one") + stanza("bulk", "two"))
    return file


def name_of(ring: Keyring, key: str) -> str | None:
    tenant = ring.tenant(key.encode())
    return None if tenant is None else tenant.name


def refreshed(ring: Keyring) -> list[str]:
    """What the log says of a second look."""
    with structlog.testing.capture_logs() as logs:
        asyncio.run(ring.refresh())
    return [line["reason"] for line in logs]


def test_without_a_source_nobody_is_asked(file: Path) -> None:
    assert Keyring().is_open
    assert not Keyring(["one"]).is_open
    file.write_text("")
    assert not Keyring(file=file).is_open, "a file without keys lets nobody in"
    assert not Keyring(tenants=MemoryTenants()).is_open


def test_a_plain_key_has_no_bounds_and_the_same_name_everywhere() -> None:
    one = Keyring(["a", "b"]).tenant(b"b")
    other = Keyring(["b"]).tenant(b"b")
    assert one is not None and one == other
    assert one.quota == UNLIMITED
    assert "b" not in one.name.removeprefix("key-")[12:]
    assert Keyring(["a", "b"]).tenant(b"a") != one


def test_a_record_says_what_its_key_allows(file: Path) -> None:
    file.write_text(
        stanza(
            *("acme", "one", 'models = ["a", "b"]', 'highest_class = "default"', "requests_per_minute = 60"),
            *("tokens_per_minute = 20_000", "max_streams = 4", "weight = 2"),
        )
    )
    tenant = Keyring(file=file).tenant(b"one")
    assert tenant == Tenant("acme", frozenset({"a", "b"}), DEFAULT, Quota(60, 20_000, 4), 2.0)
    assert [tenant.may_use(name) for name in ("a", "b", "c")] == [True, True, False]
    assert [tenant.may_ask_for(name) for name in (PRIORITY, DEFAULT, FLEX)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = = 1", "keys.toml"),
        ("x = 1", "key 'x': Expected `object`, got `int`"),
        ("[x]", "missing required field `sha256`"),
        ('[x]\nsha256 = "secret"', "regex"),
        (stanza("x", "k", "max_stream = 1"), "unknown field `max_stream`"),
        (stanza("x", "k", "max_streams = 0"), "`int` >= 1 - at `$.max_streams`"),
        (stanza("x", "k", "requests_per_minute = 1.5"), "Expected `int | null`, got `float`"),
        (stanza("x", "k", "weight = 0"), "weight"),
        (stanza("x", "k", "weight = nan"), "weight"),
        (stanza("x", "k", "weight = inf"), "weight"),
        (stanza("x", "k", 'highest_class = "gold"'), "Invalid enum value 'gold'"),
        (stanza("x", "k", 'models = "demo"'), "Expected `array | null`, got `str`"),
        (stanza('"a b"', "k"), "key 'a b'"),
        (stanza('"a\\n"', "k"), r"key 'a\n'"),
        (stanza("x", "k") + stanza("y", "k"), "'x' and 'y' are the same key"),
    ],
)
def test_a_bad_file_is_told_in_one_line_and_no_secret(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(BadKeys) as bad:
        Keyring(file=file)
    assert words in str(bad.value)
    assert str(file) in str(bad.value)
    assert "\n" not in str(bad.value)
    assert "secret" not in str(bad.value)


def test_bytes_that_are_no_text_are_a_bad_file(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadKeys):
        Keyring(file=file)


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    ring = Keyring(["plain"], file)
    assert [name_of(ring, key) for key in ("one", "two", "three")] == ["acme", "bulk", None]
    file.write_text(stanza("acme", "three"))
    assert refreshed(ring) == []
    assert [name_of(ring, key) for key in ("one", "two", "three")] == [None, None, "acme"]
    assert name_of(ring, "plain")


@pytest.mark.parametrize("breaks", [lambda file: file.write_text("x = ="), Path.unlink], ids=["broken", "gone"])
def test_a_file_that_breaks_leaves_the_last_good_keys(file: Path, breaks: Callable[[Path], None]) -> None:
    ring = Keyring(file=file)
    breaks(file)
    (reason,) = refreshed(ring)
    assert "keys.toml" in reason
    assert refreshed(ring) == [], "told once"
    assert name_of(ring, "one") == "acme"
    file.write_text(stanza("acme", "three"))
    assert refreshed(ring) == []
    assert [name_of(ring, key) for key in ("one", "three")] == [None, "acme"]
    breaks(file)
    assert refreshed(ring) == [reason], "and told again when it breaks again"


class ForgetfulTenants(MemoryTenants):
    """As a server that came back empty."""

    def forget(self) -> None:
        self._records, self._version = {}, 0


def play(scenario: Callable[[ForgetfulTenants, Keyring], Awaitable[None]], **sources: Path) -> None:
    tenants = ForgetfulTenants()
    asyncio.run(scenario(tenants, Keyring(tenants=tenants, **sources)))  # type: ignore[arg-type]


def test_keys_in_the_store_come_and_go(file: Path) -> None:
    async def scenario(tenants: ForgetfulTenants, ring: Keyring) -> None:
        assert name_of(ring, "far") is None
        await tenants.set_key("remote", stored("far"))
        await tenants.set_key("acme", stored("impostor"))
        await ring.refresh()
        assert [name_of(ring, key) for key in ("far", "one", "impostor")] == ["remote", "acme", None]
        await tenants.drop_key("remote")
        await ring.refresh()
        assert name_of(ring, "far") is None

    play(scenario, file=file)


def test_a_broken_file_keeps_no_key_in_redis_alive(file: Path) -> None:
    tenants = MemoryTenants()
    ring = Keyring(file=file, tenants=tenants)
    asyncio.run(tenants.set_key("remote", stored("far")))
    assert refreshed(ring) == []
    assert name_of(ring, "far") == "remote"
    file.unlink()
    asyncio.run(tenants.drop_key("remote"))
    assert len(refreshed(ring)) == 1
    assert [name_of(ring, key) for key in ("far", "one")] == [None, "acme"]


def test_a_store_that_forgot_its_keys_leaves_the_last_good_ones() -> None:
    async def scenario(tenants: ForgetfulTenants, ring: Keyring) -> None:
        await tenants.set_key("remote", stored("far"))
        await ring.refresh()
        tenants.forget()
        with structlog.testing.capture_logs() as logs:
            await ring.refresh()
        assert "lost them" in logs[0]["reason"]
        assert name_of(ring, "far") == "remote"
        await tenants.set_key("other", stored("near"))
        await ring.refresh()
        assert [name_of(ring, key) for key in ("far", "near")] == [None, "other"]

    play(scenario)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"sha256": "short"}'])
def test_nonsense_in_the_store_leaves_the_last_good_keys(data: bytes) -> None:
    async def scenario(tenants: ForgetfulTenants, ring: Keyring) -> None:
        await tenants.set_key("remote", stored("far"))
        await ring.refresh()
        await tenants.set_key("bad", data)
        with structlog.testing.capture_logs() as logs:
            await ring.refresh()
        assert [line["event"] for line in logs] == ["keys.unusable"]
        assert name_of(ring, "far") == "remote"
        await tenants.drop_key("bad")
        await tenants.drop_key("remote")
        await ring.refresh()
        assert name_of(ring, "far") is None

    play(scenario)


def test_a_store_that_is_down_changes_nothing() -> None:
    class Down(ForgetfulTenants):
        async def keys(self, version: int) -> tuple[int, dict[str, bytes]] | None:
            raise StoreLost("down")

    with structlog.testing.capture_logs() as logs:
        asyncio.run(Keyring(["one"], tenants=Down()).refresh())
    assert logs == []


def test_until_the_store_was_read_an_unknown_key_is_not_yet_nobodys() -> None:
    class Restarting(MemoryTenants):
        is_down = True

        async def keys(self, version: int) -> tuple[int, dict[str, bytes]] | None:
            if self.is_down:
                raise StoreLost("down")
            return await super().keys(version)

    async def main() -> None:
        tenants = Restarting()
        ring = Keyring(["one"], tenants=tenants)
        for _ in range(2):
            assert not ring.is_complete
            await ring.refresh()
        tenants.is_down = False
        await ring.refresh()
        assert ring.is_complete, "it has no keys, but said so"
        tenants.is_down = True
        await ring.refresh()
        assert ring.is_complete

    asyncio.run(main())
    assert Keyring(["one"]).is_complete


# The command


def test_the_command_makes_a_key_whose_record_the_gateway_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = "--models a,b --highest-class flex --requests-per-minute 5 --tokens-per-minute 60 --max-streams 2"
    file = tmp_path / "keys.toml"
    keys = []
    for name in ("acme", "other"):
        assert main(["key", name, *flags.split(), "--weight", "0.5"], {}) == 0
        captured = capsys.readouterr()
        keys.append(captured.err.split()[-1])
        assert keys[-1] not in captured.out
        file.write_text((file.read_text() if file.exists() else "") + captured.out)
    assert keys[0] != keys[1]
    assert len(keys[0]) > 40
    quota = Quota(5, 60, 2)
    for name, key in zip(("acme", "other"), keys, strict=True):
        assert Keyring(file=file).tenant(key.encode()) == Tenant(name, frozenset("ab"), FLEX, quota, 0.5)


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["a b"], {}, "key 'a b'"),
        (["a", "--max-streams", "0"], {}, "max_streams"),
        (["a", "--redis"], {}, "needs a URL, here or in BUCKETSERVE_REDIS"),
        (["a", "--redis", "localhost"], {}, "should start with redis://"),
        (["a", "--redis"], {"BUCKETSERVE_REDIS": "hunter2@localhost"}, "should start with redis://"),
        (["a", "--remove"], {}, "go with --redis"),
        (["a", "--replace"], {}, "go with --redis"),
        (["a", "--redis", "redis://h", "--replace", "--remove"], {}, "not allowed with"),
        (["a", "--models", ""], {}, "empty name"),
        (["a", "--models", "b, ,c"], {}, "empty name"),
        ([], {}, "NAME"),
    ],
)
def test_wrong_calls_of_the_command(
    capsys: pytest.CaptureFixture[str], argv: list[str], environ: dict[str, str], words: str
) -> None:
    assert main(["key", *argv], environ) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "hunter2" not in said.err
    assert said.out == ""


def test_a_key_in_use_is_replaced_only_if_that_is_asked_for() -> None:
    async def main() -> None:
        tenants = MemoryTenants()
        first, second = (Record(digest(key)) for key in (b"first", b"second"))

        async def known() -> dict[str, Record]:
            _, records = await tenants.keys(-1) or (0, {})
            return {name: msgspec.json.decode(record, type=Record) for name, record in records.items()}

        await key_command.put(tenants, "acme", first, replace=False)
        with pytest.raises(Failed, match=r"Redis has a key 'acme' already: .*--replace"):
            await key_command.put(tenants, "acme", second, replace=False)
        await key_command.put(tenants, "other", second, replace=True)
        assert await known() == {"acme": first, "other": second}
        await key_command.put(tenants, "acme", second, replace=True)
        assert await known() == {"acme": second, "other": second}

    asyncio.run(main())


def test_a_store_that_does_not_answer_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "a", "--redis", "redis://127.0.0.1:1"], {}) == 1
    assert "the store failed (ConnectionError); --redis names another" in capsys.readouterr().err


def test_every_field_of_a_record_has_its_flag() -> None:
    parser = Parser()
    key_command.add(parser)
    assert {*keyring.Record.__struct_fields__} - {"sha256"} <= vars(parser.parse_args(["x"])).keys()


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_a_bad_keys_file_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("x = =")
    given = ["--redis", "redis://127.0.0.1:1", "--triton", "h:1", "--keys-file", str(file), "--port", "1"]
    assert main([command, *given], {}) == 2
    assert f"bucketserve: keys file {file}" in capsys.readouterr().err
