"""The compose files keep their promises.  That they work, tests/stack/compose.sh shows; it needs Docker."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.options import OPTIONS, load

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "compose.override.yaml").read_text())
SERVICES: dict[str, Any] = BASE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_restarted_and_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_only_the_gateway_is_reachable_and_only_from_this_machine() -> None:
    assert {name: service.get("ports") for name, service in SERVICES.items() if "ports" in service} == {
        "gateway": ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]
    }


def test_the_gateway_waits_until_the_others_are_healthy() -> None:
    healthy = {"condition": "service_healthy"}
    assert SERVICES["gateway"]["depends_on"] == {"redis": healthy, "triton": healthy}


def test_the_queue_never_forgets() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_triton_has_what_its_python_backend_needs() -> None:
    triton = SERVICES["triton"]
    assert triton["shm_size"] == "1g"
    assert triton["ulimits"] == {"stack": 67108864}
    assert GPU["services"]["triton"]["ulimits"] == {"memlock": -1}
    started = (ROOT / "triton_backend" / "Dockerfile").read_text()
    assert "--model-control-mode=explicit" in started
    assert "--load-model=llm" in started


def test_a_gpu_is_reserved_by_default_and_nowhere_without_the_override() -> None:
    [device] = GPU["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert not any("deploy" in service for service in SERVICES.values())


def test_both_containers_see_the_same_model_and_cannot_write_it() -> None:
    assert SERVICES["triton"]["volumes"] == SERVICES["gateway"]["volumes"]
    assert all(volume.endswith(":ro") for volume in SERVICES["gateway"]["volumes"])


def test_the_engine_is_told_only_what_its_config_knows() -> None:
    config = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text()
    for name in SERVICES["triton"]["environment"]:
        assert f'"{name.removeprefix("ENGINE_").lower()}"' in config


def test_the_gateways_variables_are_settings() -> None:
    environment = {name: str(value) for name, value in SERVICES["gateway"]["environment"].items()}
    given = {name: "" if "$" in value else value for name, value in environment.items()}
    settings = load({}, given).settings
    assert (settings.host, settings.triton) == ("0.0.0.0", ("triton:8001",))
    assert set(environment) <= {option.env for option in OPTIONS.values()}


def test_docker_gives_the_gateway_more_time_than_it_gives_its_streams() -> None:
    assert SERVICES["gateway"]["stop_grace_period"] == "35s"
    assert load({}, {}).settings.http.grace_s < 35


def test_every_variable_is_documented() -> None:
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "compose.override.yaml").read_text()
    used = {part.split(":-")[0] for part in text.split("${")[1:]}
    documented = (ROOT / ".env.example").read_text()
    assert {name for name in used if f"#{name}=" not in documented} == set()
