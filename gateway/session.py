"""One driver's hold on one engine, over Triton's gRPC.

A session is one ModelStreamInfer stream: first the attach, then every control, in order; events, and answers to
those controls that have one, come back on it, told apart by the request id that Triton repeats.  (A second stream
for the controls was measured: the same latency up to 740 events a second, and better only flat out.)  One task
reads and one, grpc's own, writes, so cancelling a caller never cancels the call: client cancels have crashed
Triton (server#7368), so a session ends with a Detach and a half-close wherever the peer still answers.

Messages are built from the protocol's own types: tritonclient's InferInput and InferResult would make numpy
arrays of what is bytes on both ends.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import BackendLost, OtherVersion, Outranked
from triton_backend import contract
from triton_backend.contract import (
    CONTRACT_VERSION,
    Ack,
    Attach,
    Attached,
    AttachRefused,
    Batch,
    Cancel,
    ContractError,
    Detach,
    Event,
    Evict,
    Step,
    Superseded,
)

ACK_TIMEOUT_S = 5.0
"""The engine's message thread answers at once, but behind the events that were said before: so this counts while
nothing at all is heard."""
MAX_ACK_S = 30.0
"""And this in any case."""
MAX_STEPS = 8
"""Controls are taken between two steps.  After so many that tell of none, and MAX_ACK_S, none will be."""
ATTACH_TIMEOUT_S = 15.0
"""The engine answers an attach between two steps."""
SILENCE_S = 0.4
"""After it the peer is asked whether it lives.  Triton says nothing of its own when a model's process dies,
but answers a request with the news after a second.  An idle engine is heard five times a second."""
CLOSE_TIMEOUT_S = 1.0
MAX_UNSENT = 64
"""Controls that wait for flow control; then `send` waits too."""
MAX_UNREAD = 1024
"""Events a session holds for a slow reader; then the peer is held back by flow control."""
_ATTACH_ID = "attach"

Control = Batch | Cancel | Evict | Detach


class TritonSession:
    attached: Attached

    def __init__(self, stub: Any, model: str) -> None:
        self._model = model
        self._outbox: asyncio.Queue[pb.ModelInferRequest | None] = asyncio.Queue(MAX_UNSENT)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue(MAX_UNREAD)
        self._acks: dict[int, asyncio.Future[Ack]] = {}
        self._epoch = 0
        self._seq = self._taken = 0
        """Of the last control sent, and of the last that the engine has taken."""
        self._untaken_since_s = 0.0
        self._untaken_steps = 0
        """Since when, and how many steps, it could have taken another."""
        self._num_probes = 0
        self._loss: Exception | None = None
        self._is_detached = False
        self._is_over = False
        self._heard = 0
        self._call = stub.ModelStreamInfer(self._requests())
        self._reader = asyncio.create_task(self._read())
        self._watcher: asyncio.Task[None] | None = None

    async def open(self, attach: Attach) -> None:
        """Raises Outranked, BackendLost."""
        self._epoch = attach.epoch
        await self._outbox.put(_request(self._model, _ATTACH_ID, attach))
        try:
            first = await asyncio.wait_for(self._events.get(), ATTACH_TIMEOUT_S)
        except TimeoutError:
            raise BackendLost(f"no answer to an attach in {ATTACH_TIMEOUT_S:g} s") from None
        if not isinstance(first, Attached):
            raise self._loss or BackendLost("the session began with something else than a snapshot")
        if not CONTRACT_VERSION - 1 <= first.version <= CONTRACT_VERSION:
            raise OtherVersion(first.version)
        self.attached = first
        self._watcher = asyncio.create_task(self._watch())

    async def send(self, control: Control) -> None:
        if isinstance(control, Detach):
            await self._detach(control)
            return
        self._check_open()
        if self._taken >= self._seq:
            self._took(self._taken)
        self._seq = control.seq
        await self._outbox.put(_request(self._model, str(control.seq), control))

    async def _detach(self, detach: Detach) -> None:
        self._is_detached = True
        try:
            ack = await self._ask(detach)
        except BackendLost:
            if self._is_over:
                return  # The session's end overtook the answer, and says the same.
            raise
        if ack.error is not None:
            raise _refusal(ack, self._epoch)

    async def probe(self) -> None:
        self._num_probes += 1
        await self._ask(Cancel(epoch=0, seq=-self._num_probes, rows=[]))

    async def events(self) -> AsyncIterator[Event]:
        while not (self._is_over and self._events.empty()):
            event = await self._events.get()
            if event is not None:
                yield event
        if self._loss is not None:
            raise self._loss

    async def aclose(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._watcher and not self._is_over:
                    with suppress(BackendLost, Outranked):
                        await self.send(Detach(self._epoch, self._seq + 1))
                self._is_detached = True
                await self._outbox.put(None)
                await asyncio.wait({self._reader})
        except TimeoutError:
            pass
        finally:
            self._reader.cancel()
            if self._watcher:
                self._watcher.cancel()

    async def _watch(self) -> None:
        while not self._is_over:
            heard = self._heard
            await asyncio.sleep(SILENCE_S)
            if self._takes_nothing():
                self._end(BackendLost(f"nothing sent was taken for {MAX_ACK_S:g} s"))
            elif heard == self._heard:
                try:
                    await self.probe()
                except BackendLost as loss:
                    self._end(loss)

    def _takes_nothing(self) -> bool:
        waited_s = asyncio.get_running_loop().time() - self._untaken_since_s
        return self._taken < self._seq and waited_s > MAX_ACK_S and self._untaken_steps > MAX_STEPS

    async def _ask(self, control: Control) -> Ack:
        self._check_open()
        answer: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._acks[control.seq] = answer
        try:
            async with asyncio.timeout(MAX_ACK_S):
                await self._outbox.put(_request(self._model, str(control.seq), control))
                heard = -1
                while not answer.done() and heard != self._heard:
                    heard = self._heard
                    await asyncio.wait({answer}, timeout=ACK_TIMEOUT_S)
        except TimeoutError:
            pass
        finally:
            del self._acks[control.seq]
        if not answer.done():
            raise BackendLost("no answer in time")
        if answer.cancelled():
            raise self._over
        return answer.result()

    def _check_open(self) -> None:
        """Raises Outranked, BackendLost."""
        if self._is_over:
            raise self._over

    @property
    def _over(self) -> Exception:
        return self._loss or BackendLost("the session is over")

    async def _requests(self) -> AsyncIterator[pb.ModelInferRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        """Until the end of the stream; says once why it ended."""
        try:
            async for response in self._call:
                await self._take(response)
            self._end(BackendLost("Triton ended the stream"))
        except grpc.aio.AioRpcError as error:
            self._end(BackendLost(reason(error)))
        except ContractError as error:
            self._end(BackendLost(f"malformed message: {error}"))
        finally:
            self._end(BackendLost("closed"))
            self._call.cancel()

    async def _take(self, response: Any) -> None:
        answer = response.infer_response
        if response.error_message:
            self._end(BackendLost(response.error_message))
        elif not answer.raw_output_contents:  # the final flag of the attach
            self._end(BackendLost("the engine ended the session"))
        elif answer.id != _ATTACH_ID:
            self._acknowledge(contract.decode_ack(answer.raw_output_contents[0]))
        else:
            await self._hear(contract.decode_event(answer.raw_output_contents[0]))

    def _acknowledge(self, ack: Ack) -> None:
        waiting = self._acks.get(ack.seq)
        if waiting is None:
            # It may also be late, of a probe.
            if ack.error is not None and ack.seq > 0:
                self._end(_refusal(ack, self._epoch))
        elif not waiting.done():
            waiting.set_result(ack)

    async def _hear(self, event: Event) -> None:
        match event:
            case Superseded():
                self._end(Outranked(event.epoch))
            case AttachRefused():
                self._end(OtherVersion(event.version))
            case _ if not self._is_over:
                self._heard += 1
                if isinstance(event, Step):
                    self._untaken_steps += 1
                    if event.seq > self._taken:
                        self._took(event.seq)
                await self._events.put(event)

    def _took(self, seq: int) -> None:
        """The engine has taken all up to this one."""
        self._taken, self._untaken_steps = seq, 0
        self._untaken_since_s = asyncio.get_running_loop().time()

    def _end(self, loss: Exception) -> None:
        """The first end counts.  Half-closes the stream, wakes whoever waits."""
        if self._is_over:
            return
        self._is_over = True
        self._loss = None if self._is_detached else loss
        for waiting in self._acks.values():
            waiting.cancel()
        # A full queue needs no waking: its reader does not wait.
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(None)
        with suppress(asyncio.QueueFull):
            self._outbox.put_nowait(None)


def _request(model: str, request_id: str, control: contract.Control) -> pb.ModelInferRequest:
    raw = contract.encode(control)
    request = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[raw])
    request.inputs.add(name="message", datatype="UINT8", shape=[len(raw)])
    if request_id == _ATTACH_ID:
        # Without it Triton keeps a final flag that comes without data to itself.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _refusal(ack: Ack, epoch: int) -> Outranked | BackendLost:
    return Outranked(ack.epoch) if ack.epoch > epoch else BackendLost(ack.error or "refused")


def reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
