"""Triton's side of the contract: the only file that imports triton_python_backend_utils.

Rules of a decoupled model: `execute` returns nothing and raises nothing, every request has its own response
sender, the FINAL flag goes out exactly once, and nothing after it.  `execute` runs in the stub's message
thread, so it only hands over; an engine busy for seconds must not look like a dead stub.

Tensors pass as DLPack capsules of torch: Triton 2.51's own conversions read numpy 1's memory layout and
return nonsense under numpy 2, and it marks used capsules in a way that numpy reports as an error, for
each message.
"""

import faulthandler
import gc
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import torch
import triton_python_backend_utils as pb  # type: ignore[import-not-found]
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from triton_backend import contract
from triton_backend.engine import Engine, EngineConfig
from triton_backend.session import SinkClosed

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 1800.0


def settings(parameters: Mapping[str, Mapping[str, str]], environment: Mapping[str, str]) -> dict[str, str]:
    """The model's parameters, each overruled by ENGINE_<NAME>, but for empty ones."""
    given = {
        key: environment.get(f"ENGINE_{key.upper()}", value["string_value"]) for key, value in parameters.items()
    }
    return {key: value for key, value in given.items() if value}


def _response(message: contract.Event | contract.Ack) -> Any:
    data = torch.frombuffer(bytearray(contract.encode(message)), dtype=torch.uint8)
    return pb.InferenceResponse([pb.Tensor.from_dlpack("message", to_dlpack(data))])


def _answer(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _refuse(sender: Any, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    _answer(sender, pb.InferenceResponse(error=pb.TritonError(reason)))


class ResponseSink:
    """A session's response sender.  The lock keeps a send from following the final flag, whoever calls."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._lock = Lock()
        self._finished = False

    def send(self, event: contract.Event) -> None:
        response = _response(event)
        with self._lock:
            if self._finished:
                raise SinkClosed
            try:
                self._sender.send(response)
            except Exception as error:
                raise SinkClosed from error

    def is_closed(self) -> bool:
        return self._finished or bool(self._sender.is_cancelled())

    def finish(self) -> None:
        with self._lock:
            if not self._finished:
                self._finished = True
                try:
                    self._sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                except Exception:  # Nobody is there to hear it; the engine, whose thread this may be, goes on.
                    log.exception("a session's final flag could not be sent")


def _end_predecessor(instance: str) -> bool:
    """Triton unloads a model only when its session has ended, which that of a hung engine never does: the
    process stays, and so does the memory that the new one is about to ask for.  Whether there was one."""
    found = False
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if parent == os.getppid() and pid != os.getpid() and instance.encode() in words:
                os.kill(pid, signal.SIGKILL)
                found = True
    return found


class Will:
    """While it is in force, the server ends with this process.  Triton never gives back what it has for a model's
    process that died in the middle of a session: 35 threads, 8 MiB of shared memory, the model's last version."""

    def __init__(self) -> None:
        # Its standard input ends with us, however that comes about.
        deed = f"read word || kill -KILL {os.getppid()}"
        self._executor = subprocess.Popen(["sh", "-c", deed], stdin=subprocess.PIPE)

    def revoke(self) -> None:
        self._executor.communicate(b"\n")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        given = settings(json.loads(args["model_config"])["parameters"], os.environ)
        ends_server = given.pop("ends_server", "false") == "true"
        # Nobody else can end a load that hangs: until it is over, Triton takes no word about the model.
        faulthandler.dump_traceback_later(float(given.pop("load_timeout_s", LOAD_TIMEOUT_S)), exit=True)
        if _end_predecessor(args["model_instance_name"]) and ends_server:
            # Its will does the same, but a moment later.
            os.kill(os.getppid(), signal.SIGKILL)
        self._engine = Engine(msgspec.convert(given, EngineConfig, strict=False))
        # What is there now stays; to look through all of it takes the collector 0.2 s, which a step takes longer.
        gc.collect()
        gc.freeze()
        self._engine.start()
        faulthandler.cancel_dump_traceback_later()
        # A failure until here is Triton's to tell.
        self._will = Will() if ends_server else None

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except Exception as error:  # one bad request must not take the others, or the stub, with it
                _refuse(sender, error)

    def _take(self, request: Any, sender: Any) -> None:
        message = from_dlpack(pb.get_input_tensor_by_name(request, "message"))
        control = contract.decode_control(message.numpy().tobytes())
        if not self._engine.is_alive():
            raise RuntimeError("the engine is dead")
        if isinstance(control, contract.Attach):
            self._engine.attach(control, ResponseSink(sender))
        elif ack := self._engine.submit(control):
            _answer(sender, _response(ack))
        else:
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_ready(self) -> bool:
        """Asked by Triton from 25.x on; the gateway's probe tells the same on older ones."""
        return self._engine.is_alive()

    def finalize(self) -> None:
        if self._will is not None:
            self._will.revoke()
        self._engine.stop(STOP_TIMEOUT_S)
