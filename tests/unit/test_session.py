"""A session over a line whose other end says what the test wants, on virtual time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import Metadata
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import BackendLost, ModelRefused, OtherVersion, Outranked
from gateway.session import ACK_TIMEOUT_S, CLOSE_TIMEOUT_S, MAX_ACK_S, SILENCE_S, TritonSession
from gateway.triton import REACH_TIMEOUT_S, TritonBackend, load_error
from tests.unit.fakes import clock
from tests.unit.test_contract import MODEL, TELEMETRY
from triton_backend import contract
from triton_backend.contract import (
    CONTRACT_VERSION,
    Ack,
    Attach,
    Attached,
    AttachRefused,
    Cancel,
    Detach,
    Event,
    Step,
)
from triton_backend.memory import Paged


class Engine:
    """Speaks one version and the one before (triton_backend.session.Reception); gives a sign of life every second,
    and what it has to answer after a while."""

    def __init__(self, version: int = CONTRACT_VERSION, ack_s: float = 0.0, life_s: float = 100.0) -> None:
        self.version = version
        self.ack_s = ack_s
        self.refusal: Ack | None = None
        """Of what comes after the attach."""
        self.takes = True
        """Steps tell that they took what came."""
        self.life_s = life_s
        self.step_s = 1.0
        """After which it says nothing any more."""
        self.is_reachable = True
        self.states = ["READY"]
        """Triton's words, one after the other."""
        self.num_attaches = self.num_loads = 0
        self.attached: list[int] = []
        self.hangs = False
        """Nothing of what comes is taken from the line any more."""
        self.heard: list[str] = []
        """What came, by kind; how the line ended too."""

    def ModelStreamInfer(self, requests: AsyncIterator[Any]) -> "Line":  # noqa: N802
        return Line(self, requests)

    async def ServerLive(self, request: Any, timeout: float) -> None:  # noqa: ASYNC109, N802
        if not self.is_reachable:
            await asyncio.sleep(timeout)
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, Metadata(), Metadata(), "too late")

    async def RepositoryIndex(self, request: Any, timeout: float) -> Any:  # noqa: ASYNC109, N802
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        found = pb.RepositoryIndexResponse.ModelIndex(name="llm", version="1", state=state)
        return pb.RepositoryIndexResponse(models=[found])

    async def RepositoryModelUnload(self, request: Any, timeout: float | None) -> None:  # noqa: ASYNC109, N802
        self.num_loads += 1

    async def RepositoryModelLoad(self, request: Any, timeout: float | None) -> None:  # noqa: ASYNC109, N802
        self.num_loads += 1


class Line:
    def __init__(self, engine: Engine, requests: AsyncIterator[Any]) -> None:
        self._engine = engine
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._seq = 0
        self._tasks = [asyncio.create_task(self._hear(requests))]

    def __aiter__(self) -> "Line":
        return self

    async def __anext__(self) -> Any:
        if (said := await self._said.get()) is None:
            raise StopAsyncIteration
        return said

    def cancel(self) -> None:
        self._engine.heard.append("cancel")
        for task in self._tasks:
            task.cancel()

    def _say(self, id: str, raw: bytes) -> None:
        answer = pb.ModelInferResponse(id=id, raw_output_contents=[raw])
        self._said.put_nowait(pb.ModelStreamInferResponse(infer_response=answer))

    async def _hear(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            if self._engine.hangs:
                await asyncio.sleep(1e9)
            control = contract.decode_control(request.raw_input_contents[0])
            if not self._engine.is_reachable:
                continue
            self._engine.heard.append(type(control).__name__)
            if isinstance(control, Attach) and self._engine.states[0] == "LOADING":
                self._said.put_nowait(pb.ModelStreamInferResponse(error_message="no available versions"))
                continue
            if isinstance(control, Attach):
                self._say(request.id, contract.encode(self._answer(control)))
                self._tasks.append(asyncio.create_task(self._live(request.id)))
                continue
            ack = self._engine.refusal
            if self._engine.takes and not ack:
                self._seq = max(self._seq, control.seq)
            version = self._engine.attached[-1] if self._engine.attached else self._engine.version
            # A probe is of an epoch that never holds the engine.
            if not ack and contract.is_acknowledged(control, version):
                ack = Ack(control.seq, 1, None if control.epoch else "held by another")
            if ack:
                asyncio.get_running_loop().call_later(
                    self._engine.ack_s, self._say, request.id, contract.encode(ack)
                )
        self._engine.heard.append("half-close")
        self._said.put_nowait(None)

    def _answer(self, attach: Attach) -> Event:
        engine = self._engine
        engine.num_attaches += 1
        if not engine.version - 1 <= attach.version <= engine.version:
            return AttachRefused(engine.version, "not spoken here")
        engine.attached.append(attach.version)
        return Attached(attach.epoch, attach.version, MODEL, Paged(16, 10), [], TELEMETRY)

    async def _live(self, id: str) -> None:
        for _ in range(round(self._engine.life_s)):
            # What comes during a step is taken after it.
            seq = self._seq
            await asyncio.sleep(self._engine.step_s)
            self._say(id, contract.encode(Step(seq, TELEMETRY)))


async def backend_of(engine: Engine) -> TritonBackend:
    backend = TritonBackend("127.0.0.1:1", "llm")
    await backend.aclose()
    backend._stub = engine
    return backend


async def answered(engine: Engine) -> float:
    """Seconds until a control that has an answer gets it.  Raises BackendLost."""
    session = await (await backend_of(engine)).attach(Attach(1, "gateway"))
    reading = asyncio.create_task(_read(session))
    begun_s = asyncio.get_running_loop().time()
    try:
        await session.probe()
        return asyncio.get_running_loop().time() - begun_s
    finally:
        reading.cancel()
        await session.aclose()


async def lost(engine: Engine) -> tuple[float, Exception]:
    """Seconds from a control until the session ends, and how."""
    session = await (await backend_of(engine)).attach(Attach(1, "gateway"))
    begun_s = asyncio.get_running_loop().time()
    await session.send(Cancel(1, 1, []))
    assert asyncio.get_running_loop().time() == begun_s
    with pytest.raises((BackendLost, Outranked)) as loss:
        await _read(session)
    lost_s = asyncio.get_running_loop().time() - begun_s
    # The line ends too, which says less.
    await asyncio.sleep(1.0)
    with pytest.raises(type(loss.value)):
        await session.send(Cancel(1, 2, []))
    await session.aclose()
    return lost_s, loss.value


async def _read(session: TritonSession) -> None:
    async for _ in session.events():
        pass


@pytest.mark.parametrize("ack_s", [0.1, ACK_TIMEOUT_S + 1, 3 * ACK_TIMEOUT_S])
def test_an_answer_may_come_late_behind_events(ack_s: float) -> None:
    assert clock.run(answered(Engine(ack_s=ack_s))) == pytest.approx(ack_s, abs=0.5)


@pytest.mark.parametrize(
    ("life_s", "lost_s"), [(0.0, ACK_TIMEOUT_S), (3.0, 2 * ACK_TIMEOUT_S), (100.0, MAX_ACK_S)]
)
def test_an_engine_that_answers_nothing_is_lost(life_s: float, lost_s: float) -> None:
    async def main() -> float:
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(BackendLost):
            await answered(Engine(ack_s=1000.0, life_s=life_s))
        return asyncio.get_running_loop().time() - begun_s

    assert clock.run(main()) <= lost_s + 1.0


def test_a_server_that_cannot_be_reached_is_given_up_soon() -> None:
    async def main() -> float:
        engine = Engine()
        engine.is_reachable = False
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(BackendLost, match="DEADLINE_EXCEEDED"):
            await (await backend_of(engine)).attach(Attach(1, "gateway"))
        return asyncio.get_running_loop().time() - begun_s

    assert clock.run(main()) <= REACH_TIMEOUT_S


def test_a_session_ends_by_itself_when_its_engine_says_nothing_any_more() -> None:
    async def main() -> float:
        session = await (await backend_of(Engine(ack_s=1000.0, life_s=0.0))).attach(Attach(1, "gateway"))
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(BackendLost, match="no answer in time"):
            await _read(session)
        await session.aclose()
        return asyncio.get_running_loop().time() - begun_s

    assert clock.run(main()) <= SILENCE_S + 2 * ACK_TIMEOUT_S


def test_a_session_is_closed_with_a_word_and_cut_only_if_nobody_hears_it() -> None:
    """A stream that its client cancels has crashed Triton."""

    async def main(hangs: bool) -> list[str]:
        engine = Engine()
        session = await (await backend_of(engine)).attach(Attach(1, "gateway"))
        engine.hangs = hangs
        async with asyncio.timeout(CLOSE_TIMEOUT_S + 0.1):
            await session.aclose()
        await asyncio.sleep(1.0)
        assert [event async for event in session.events()] == []
        return engine.heard

    assert clock.run(main(hangs=False)) == ["Attach", "Detach", "half-close", "cancel"]
    assert clock.run(main(hangs=True)) == ["Attach", "cancel"]


def test_an_engine_that_takes_nothing_is_lost() -> None:
    engine = Engine()
    engine.takes = False
    lost_s, loss = clock.run(lost(engine))
    assert lost_s == pytest.approx(MAX_ACK_S, abs=1.0)
    assert "nothing sent was taken" in str(loss)


@pytest.mark.parametrize("step_s", [1.0, 2 * MAX_ACK_S])
@pytest.mark.parametrize("version", [CONTRACT_VERSION - 1, CONTRACT_VERSION])
def test_an_engine_that_takes_what_is_sent_is_not_lost(version: int, step_s: float) -> None:
    async def main() -> None:
        engine = Engine(version, life_s=200)
        engine.step_s = step_s
        session = await (await backend_of(engine)).attach(Attach(1, "gateway"))
        reading = asyncio.create_task(_read(session))
        for seq in range(1, 4):
            await session.send(Cancel(1, seq, []))
            await asyncio.sleep(MAX_ACK_S + 5)
            assert not reading.done()
        await session.send(Detach(1, 4))
        await session.aclose()
        reading.cancel()

    clock.run(main())


@pytest.mark.parametrize(
    ("refusal", "loss"), [(Ack(1, 2, "epoch 2 holds the engine"), Outranked), (Ack(1, 1, "down"), BackendLost)]
)
def test_a_refusal_ends_the_session(refusal: Ack, loss: type[Exception]) -> None:
    engine = Engine()
    engine.refusal = refusal
    lost_s, error = clock.run(lost(engine))
    assert (lost_s, type(error)) == (pytest.approx(0.0, abs=0.1), loss)


@pytest.mark.parametrize(
    ("states", "loads"),
    [
        (["READY"], 1),
        (["UNAVAILABLE"], 1),
        (["LOADING"], 0),
        (["", "LOADING"], 0),
        (["READY", "LOADING"], 0),
        (["", "READY"], 1),
        (["", ""], 1),
    ],
)
def test_a_silent_engine_is_replaced_unless_somebody_is_at_it(states: list[str], loads: int) -> None:
    async def main() -> None:
        engine = Engine(ack_s=1000.0)
        engine.states = states
        await (await backend_of(engine)).revive()
        assert engine.num_loads == 2 * loads, "unloaded and loaded"

    clock.run(main())


def test_an_engine_that_was_just_loaded_is_left_alone() -> None:
    """It gets ready between an attach that fails and the look at why."""

    async def main() -> None:
        engine = Engine()
        engine.states = ["LOADING"]
        backend = await backend_of(engine)
        for epoch in range(1, 4):
            with pytest.raises(BackendLost, match="no available versions"):
                await backend.attach(Attach(epoch, "gateway"))
            if epoch == 3:
                engine.states = ["READY"]
            await backend.revive()
        assert engine.num_loads == 0
        await (await backend.attach(Attach(4, "gateway"))).aclose()

    clock.run(main())


@pytest.mark.parametrize("version", [CONTRACT_VERSION - 1, CONTRACT_VERSION, CONTRACT_VERSION + 1])
def test_neighbouring_versions_speak_the_lower_one(version: int) -> None:
    async def main() -> None:
        engine = Engine(version)
        session = await (await backend_of(engine)).attach(Attach(1, "gateway"))
        assert session.attached.version == engine.attached[0] == min(version, CONTRACT_VERSION)
        await session.aclose()

    clock.run(main())


@pytest.mark.parametrize("version", [CONTRACT_VERSION - 2, CONTRACT_VERSION + 2])
def test_an_engine_of_a_distant_version_is_refused_and_left_alone(version: int) -> None:
    async def main() -> None:
        engine = Engine(version)
        backend = await backend_of(engine)
        for _ in range(3):
            with pytest.raises(OtherVersion):
                await backend.attach(Attach(1, "gateway"))
            await backend.revive()
        assert (engine.attached, engine.num_loads) == ([], 0)

    clock.run(main())


PLACES = "\n\nAt:\n  /loader.py(27): load_model\n;\n"
"""In the code, as Triton adds them."""


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        (f"Internal: UnsupportedModel: cannot load m: no{PLACES}", ModelRefused, "cannot load m: no"),
        (f"Internal: KeyError: 'm'{PLACES}", BackendLost, f"Internal: KeyError: 'm'{PLACES}"),
    ],
    ids=["a refusal", "a bug"],
)
def test_a_refused_model_is_told_in_one_line(said: str, kind: type[BackendLost], told: str) -> None:
    error = load_error(said)
    assert (type(error), str(error)) == (kind, told)
