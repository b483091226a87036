"""The compose files keep their promises.  That they work, tests/stack/compose.sh shows; it needs Docker."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.errors import PayloadTooLarge, Unavailable
from gateway.options import OPTIONS, load

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "compose.override.yaml").read_text())
SERVICES: dict[str, Any] = BASE["services"]
NGINX = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "gateway" / "nginx.conf").read_text())


def directives(name: str) -> list[str]:
    """The arguments of every directive of that name in nginx.conf."""
    return re.findall(rf"(?m)^\s*{name} (.*);$", NGINX)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_restarted_and_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


def test_only_the_balancer_is_reachable_and_only_from_this_machine() -> None:
    assert {name: service.get("ports") for name, service in SERVICES.items() if "ports" in service} == {
        "balancer": ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_can_be_scaled(name: str) -> None:
    assert "container_name" not in SERVICES[name]


def test_each_waits_until_what_it_asks_is_healthy() -> None:
    healthy = {"condition": "service_healthy"}
    assert SERVICES["gateway"]["depends_on"] == {"redis": healthy, "triton": healthy}
    assert SERVICES["balancer"]["depends_on"] == {"gateway": healthy}


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
    model, keys = SERVICES["gateway"]["volumes"]
    assert SERVICES["triton"]["volumes"] == [model]
    assert model.endswith(":/model:ro") and keys.endswith(":ro")


def test_the_engine_is_told_only_what_its_config_knows() -> None:
    config = (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text()
    names = [name for name in SERVICES["triton"]["environment"] if name.startswith("ENGINE_")]
    assert "ENGINE_MODEL" in names
    for name in names:
        assert f'"{name.removeprefix("ENGINE_").lower()}"' in config


def test_the_gateways_image_has_all_that_a_gateway_imports() -> None:
    copied = re.findall(r"(?m)^COPY (\S+) \1$", (ROOT / "gateway" / "Dockerfile").read_text())
    assert copied == ["gateway", "triton_backend"]
    without_torch = "import sys; sys.modules['torch'] = None; import gateway.__main__, gateway.app"
    subprocess.run([sys.executable, "-c", without_torch], check=True, cwd=ROOT)


def test_the_gateways_variables_are_settings() -> None:
    environment = {name: str(value) for name, value in SERVICES["gateway"]["environment"].items()}
    given = {name: "" if "$" in value else value for name, value in environment.items()}
    settings = load({}, given).settings
    assert (settings.host, settings.triton) == ("0.0.0.0", ("triton:8001",))
    assert set(environment) <= {option.env for option in OPTIONS.values()}


def test_docker_gives_more_time_than_the_streams_get() -> None:
    grace_s = load({}, {}).settings.http.grace_s
    assert directives("worker_shutdown_timeout") == [f"{grace_s:g}s"]
    assert SERVICES["balancer"]["stop_signal"] == "SIGQUIT"
    assert SERVICES["balancer"]["stop_grace_period"] == SERVICES["gateway"]["stop_grace_period"] == "35s"
    assert grace_s < 35


def test_the_balancer_finds_every_gateway_while_it_serves() -> None:
    assert directives("resolver") == ["127.0.0.11 valid=1s ipv6=off"]
    assert directives("set") == ["$gateways gateway:8000"]
    assert directives("proxy_pass") == ["http://$gateways"]
    assert "gateway" in SERVICES and "EXPOSE 8000\n" in (ROOT / "gateway" / "Dockerfile").read_text()


def test_the_balancer_holds_no_answer_back_and_whole_requests_only() -> None:
    assert directives("proxy_buffering") == ["off"]
    assert directives("gzip") == directives("proxy_cache") == []
    assert directives("proxy_request_buffering") == directives("proxy_ignore_client_abort") == []  # on, off


def test_the_balancer_tries_the_other_gateways_until_an_answer_begins() -> None:
    assert directives("proxy_next_upstream") == ["error timeout http_503 non_idempotent"]
    assert directives("proxy_next_upstream_tries") == []  # all


def test_the_balancer_has_the_gateways_limits() -> None:
    http = load({}, {}).settings.http
    assert directives("client_max_body_size") == [f"{http.max_body_bytes // 2**20}m"]
    assert directives("client_body_timeout") == [f"{http.body_timeout_s:g}s"]
    assert directives("send_timeout") == [f"{http.slow_client_s:g}s"]
    assert f" {http.max_body_bytes:d} bytes" in NGINX


def test_the_balancers_errors_are_openais() -> None:
    for status, error in ((413, PayloadTooLarge), (503, Unavailable)):
        [body] = [given[len("413 '") : -1] for given in directives("return") if given.startswith(f"{status} ")]
        [(key, told)] = json.loads(body).items()
        assert (key, told["type"], told["code"], told["param"]) == ("error", error.type, error.code, None)
        assert error.status == status


def test_the_balancer_writes_nowhere_but_to_its_memory() -> None:
    written = directives("pid") + directives(r"\w+_temp_path")
    assert len(written) == 6 and all(path.startswith("/tmp/") for path in written)
    assert SERVICES["balancer"]["tmpfs"] == ["/tmp:size=256m"]
    assert SERVICES["balancer"]["read_only"] and SERVICES["balancer"]["volumes"] == [
        "./gateway/nginx.conf:/etc/nginx/nginx.conf:ro"
    ]
    assert all(int(address.split(":")[-1]) > 1023 for address in directives("listen"))


def test_every_variable_is_documented() -> None:
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "compose.override.yaml").read_text()
    used = {part.split(":-")[0] for part in text.split("${")[1:]}
    documented = (ROOT / ".env.example").read_text()
    assert {name for name in used if f"#{name}=" not in documented} == set()
