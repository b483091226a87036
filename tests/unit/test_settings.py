"""Names, precedence, complaints and secrets of the settings.  The command line itself is in test_cli."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway import options
from gateway.options import OPTIONS, SettingsError, load
from gateway.request import ServiceClass
from gateway.settings import Settings


def complaint(flags: dict[str, object], environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load(flags, environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "bucketserve.toml"
    file.write_text('port = 1001\nhost = "file"\n[http]\ngrace_s = 1.5\n[classes.flex]\nshare = 0.2\n')
    return file


def test_later_sources_win(config: Path) -> None:
    environ = {
        "BUCKETSERVE_CONFIG": str(config),
        "BUCKETSERVE_PORT": "1002",
        "BUCKETSERVE_LOG__LEVEL": "debug",
    }
    settings, sources = load({"port": "1003"}, environ)
    assert (settings.port, settings.log.level, settings.host) == (1003, "debug", "file")
    assert sources == {
        "port": "--port",
        "log.level": "BUCKETSERVE_LOG__LEVEL",
        "host": str(config),
        "http.grace_s": str(config),
        "classes.flex.share": str(config),
    }


def test_a_section_given_in_part_keeps_its_other_defaults(config: Path) -> None:
    settings = load({"config": str(config), "http.keepalive_s": "3"}, {}).settings
    assert (settings.http.grace_s, settings.http.keepalive_s) == (1.5, 3)
    assert (settings.classes.flex.share, settings.classes.flex.ttft_s) == (
        0.2,
        Settings().classes.flex.ttft_s,
    )


def test_the_flag_for_the_file_goes_before_the_variable(config: Path) -> None:
    assert load({"config": str(config)}, {"BUCKETSERVE_CONFIG": "/nowhere"}).settings.port == 1001


def test_an_empty_variable_counts_as_none() -> None:
    assert load({}, {"BUCKETSERVE_PORT": ""}).settings == Settings()


def test_kubernetes_word_of_its_services_is_no_setting() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
        "REDIS_SERVICE_HOST": "10.0.0.2",
        "REDIS_PORT": "udp://10.0.0.2:6379",
    }
    environ = {f"BUCKETSERVE_{name}": value for name, value in links.items()}
    assert load({}, environ).settings == Settings()
    for name, value in (("PORT", "x"), ("PORT_8000", "8000"), ("REDIS_PORT", "6379"), ("HOST_SERVICE", "h")):
        assert f"BUCKETSERVE_{name}" in complaint({}, {**environ, f"BUCKETSERVE_{name}": value})


@pytest.mark.parametrize("value", ["a:1,b:2", ["a:1", "b:2"], ["a:1, b:2"]])
def test_lists_are_given_with_commas_or_by_repeating(value: object) -> None:
    assert load({"triton": value}, {}).settings.triton == ("a:1", "b:2")


def test_a_model_in_ones_own_folder_is_found_whoever_gives_it() -> None:
    assert load({}, {"BUCKETSERVE_MODEL": "~/m"}).settings.model == str(Path.home() / "m")


def test_sizes_take_units() -> None:
    assert load({"kv_budget": "512MiB"}, {}).settings.kv_budget == 512 * 2**20


def test_unknown_names_come_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[http]\ngrace = 3\n")
    assert complaint({"config": str(file)}, {}).endswith("no setting 'http.grace'; did you mean 'http.grace_s'?")
    file.write_text("[htp]\n")
    assert "no setting 'htp'" in complaint({"config": str(file)}, {})
    message = complaint({}, {"BUCKETSERVE_QUEUE__MAX_TOKEN": "3"})
    assert message.endswith("did you mean BUCKETSERVE_QUEUE__MAX_TOKENS?")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "x", "port = 'x' (from --port): "),
        ("port", "65536", "less than or equal to 65535"),
        ("triton", ["somewhere"], "should be HOST:PORT"),
        ("device", "gpu", "should be cpu, cuda or cuda:N"),
        ("dtype", "float8", "'float32', 'bfloat16' or 'float16'"),
        ("kv_budget", "12 potatoes", "potatoes"),
        ("scheduling.safety_factor", "nan", "(from --scheduling-safety-factor)"),
        ("driver.renew_s", "3", "driver: renew_s must be less than lease_s"),
        ("config", "/nowhere", "config file /nowhere: No such file or directory"),
    ],
)
def test_bad_values_are_told_with_their_source(name: str, value: object, words: str) -> None:
    assert words in complaint({name: value}, {})


def test_a_file_that_is_not_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("port = = 1")
    assert "x.toml" in complaint({"config": str(tmp_path / "x.toml")}, {})


def test_the_tree_is_frozen_and_knows_its_fields_only() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
    with pytest.raises(ValidationError):
        Settings.model_validate({"prot": 1})


def test_every_setting_is_described_and_every_name_unique() -> None:
    assert [name for name, option in OPTIONS.items() if not option.field.description] == []
    assert len({option.flag for option in OPTIONS.values()}) == len(OPTIONS)
    assert len({option.env for option in OPTIONS.values()}) == len(OPTIONS)


def test_every_class_has_targets() -> None:
    assert set(Settings().classes.targets()) == set(ServiceClass)


SECRETS = {"BUCKETSERVE_REDIS": "redis://me:hunter2@store:6379/0", "BUCKETSERVE_API_KEYS": "sk-one,sk-two"}


def test_secrets_never_show() -> None:
    loaded = load({}, SECRETS)
    shown = options.show(loaded) + repr(loaded) + complaint({"redis": "http://:hunter2@store"}, SECRETS)
    assert "redis://***@store:6379/0" in shown
    assert not any(secret in shown for secret in ("hunter2", "sk-one", "sk-two"))


def test_what_is_shown_can_be_fed_back(tmp_path: Path) -> None:
    given = {
        "port": "81",
        "triton": "a:1",
        "kv_budget": "1GiB",
        "model": 'a "b" \\ ü',
        "classes.flex.ttft_s": "9",
    }
    loaded = load(given, {})
    file = tmp_path / "shown.toml"
    file.write_text(options.show(loaded))
    assert load({"config": str(file)}, {}).settings == loaded.settings


def test_a_hidden_secret_is_left_out_when_fed_back() -> None:
    shown = tomllib.loads(options.show(load({}, SECRETS)))
    assert "redis" not in shown
    assert "api_keys" not in shown
