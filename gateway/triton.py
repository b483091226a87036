"""A replica behind Triton's gRPC: its sessions (session.py), its health, its loading."""

import asyncio
import re
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import BackendLost, ModelRefused, OtherVersion
from gateway.session import TritonSession, reason
from triton_backend.contract import CONTRACT_VERSION, Attach

RELOAD_TIMEOUT_S = 600.0
"""Large checkpoints load for minutes."""
REACH_TIMEOUT_S = 3.0
"""A server says at once that it is there, an engine answers an attach between two steps.  So a gateway that cannot
reach a server leaves it to others soon."""
STARTER_S = 1.0
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A dead host is noticed in 15 s even if its network says nothing.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each replica has its own connection: one engine's large messages do not delay another's.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that starts, again or for the first time, is met soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_REFUSAL = re.compile(r"UnsupportedModel: (.*)")


async def replicas(address: str, timeout_s: float = 2.0) -> list[str]:
    """Names of the engines that a Triton offers: its model `llm`, or `llm-0`, `llm-1` and so on.  None of
    them yet, or no answer: []."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return []
    return sorted({model.name for model in index.models if re.fullmatch(r"llm(-[0-9]+)?", model.name)})


def load_error(said: str) -> BackendLost:
    """Of a model that the engine refuses, its own line, without Triton's words and the places in the code."""
    refusal = _REFUSAL.search(said)
    return ModelRefused(refusal[1]) if refusal else BackendLost(said)


class TritonBackend:
    """Must be made on the event loop's thread."""

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._model = model
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._failed_attaches = 0
        """In a row."""

    @property
    def replica(self) -> str:
        return f"{self._address}/{self._model}"

    async def attach(self, attach: Attach) -> "TritonSession":
        await self._control(self._stub.ServerLive(pb.ServerLiveRequest(), timeout=REACH_TIMEOUT_S))
        try:
            return await self._open(attach)
        except OtherVersion as other:
            version = other.version
            if version != CONTRACT_VERSION - 1:
                raise
        return await self._open(msgspec.structs.replace(attach, version=version))

    async def _open(self, attach: Attach) -> TritonSession:
        session = TritonSession(self._stub, self._model)
        try:
            await session.open(attach)
        except BaseException as error:
            # A new process of it would speak no other version.
            self._failed_attaches += isinstance(error, BackendLost) and not isinstance(error, OtherVersion)
            await session.aclose()
            raise
        self._failed_attaches = 0
        return session

    async def ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the engine answers.  Triton goes on calling a model ready whose process is dead
        (server#8604), so this asks the engine itself, by a control of an epoch that never holds it."""
        session = TritonSession(self._stub, self._model)
        try:
            async with asyncio.timeout(timeout_s):
                await session.probe()
        except (BackendLost, TimeoutError):
            return False
        finally:
            await session.aclose()
        return True

    async def server_live(self, timeout_s: float = 2.0) -> bool:
        """Whether the server itself answers, with or without the model."""
        try:
            answer = await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.live)

    async def load(self, timeout_s: float | None = None) -> None:
        """Returns when the model can run.  Raises ModelRefused, and BackendLost with what else was said."""
        request = pb.RepositoryModelLoadRequest(model_name=self._model)
        await self._control(self._stub.RepositoryModelLoad(request, timeout=timeout_s))

    async def reload(self, timeout_s: float | None = None) -> None:
        """A new process for a model whose engine hangs or died.  Raises BackendLost."""
        request = pb.RepositoryModelUnloadRequest(model_name=self._model)
        await self._control(self._stub.RepositoryModelUnload(request, timeout=timeout_s))
        await self.load(timeout_s)

    async def revive(self) -> None:
        """Restart the engine unless it answers; also if it does, but lets nobody attach: its thread hangs or is
        dead.  Without a server there is nothing to restart, and what somebody else is starting comes by itself."""
        if not await self._may_load():
            # That nobody could attach to what is being started says nothing of it once it is there.
            self._failed_attaches = 0
            return
        if self._failed_attaches <= 1 and await self.ready():
            return
        # Again: to load what somebody has begun to load meanwhile would end both processes.
        if await self._may_load():
            self._failed_attaches = 0
            await self.reload(RELOAD_TIMEOUT_S)

    async def _may_load(self) -> bool:
        """A server answers, and nobody is starting the model, nor about to, having started the server."""
        states = await self._states()
        if states == {""}:
            await asyncio.sleep(STARTER_S)
            states = await self._states()
        return bool(states) and "LOADING" not in states

    async def _states(self, timeout_s: float = 2.0) -> set[str]:
        """Of the model's versions; "" if it was never loaded.  No answer: none."""
        try:
            index = await self._stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return set()
        return {model.state for model in index.models if model.name == self._model}

    async def _control(self, call: Any) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise load_error(reason(error)) from error

    async def aclose(self) -> None:
        await self._channel.close()
