"""A session through a real Triton: over the real engine with a fresh small model, and, for what breaks, over
the stand-in engine."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import numpy
import pytest
import pytest_asyncio
from tritonclient.grpc import InferInput, InferResult
from tritonclient.grpc import aio as tritonclient

from gateway import local
from gateway.embedded import StartFailed
from gateway.errors import BackendLost, Outranked
from gateway.process import marked
from gateway.run_folder import SHARED_MEMORY, shm_prefix
from gateway.session import TritonSession
from gateway.triton import TritonBackend
from tests.stack import standin, storm
from tests.unit import tiny_models
from triton_backend.contract import (
    CONTRACT_VERSION,
    Attach,
    Batch,
    Cancel,
    Detach,
    End,
    Ended,
    Event,
    NewRow,
    Step,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EPOCHS = count(1000)
NUMBERS = count(1)
FOREVER = 10**6
HANG, DIE, FIRST = 666, 667, 500  # standin/1/standin_engine.py


def new_row(max_tokens: int, first: int = 1) -> NewRow:
    return NewRow(next(NUMBERS), "call/0", 1, "origin", [first, 2, 3], 0, max_tokens)


async def until_end(session: TritonSession, row: int) -> tuple[list[int], Ended]:
    """The tokens of a row and how it ended."""
    tokens: list[int] = []
    async for event in session.events():
        assert isinstance(event, Step)
        tokens += [token for number, token in zip(event.rows, event.tokens, strict=True) if number == row]
        for ended in event.ended:
            if ended.row == row:
                return tokens, ended
    raise AssertionError("the session ended before the row")


async def until_taken(session: TritonSession, seq: int) -> None:
    async for event in session.events():
        if isinstance(event, Step) and event.seq >= seq:
            return
    raise AssertionError("the session ended before")


async def all_events(session: TritonSession) -> list[Event]:
    return [event async for event in session.events()]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[local.Stack]:
    template = standin.template(tmp_path_factory.mktemp("standin") / "llm")
    # 2 ms a step.
    async with local.Stack(model="standin", template=template, redis_url="none", threads=2000) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def backend(stack: local.Stack) -> AsyncIterator[TritonBackend]:
    backend = TritonBackend(stack.triton_address, "llm")
    yield backend
    await backend.aclose()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.fresh("llama").save_pretrained(folder)
    return folder


async def test_round_trip_with_the_real_engine(small_model: Path) -> None:
    async with local.Stack(model=str(small_model), name="small", redis_url="none", threads=1) as stack:
        backend = TritonBackend(stack.triton_address, "llm")
        session = await backend.attach(Attach(1, "driver"))
        assert session.attached.model.name == "small"
        assert session.attached.model.context_tokens == tiny_models.CONTEXT_TOKENS
        short, long = new_row(5), new_row(200)
        await session.send(Batch(1, 1, [short, long]))
        tokens, ended = await until_end(session, short.row)
        assert (len(tokens), ended.reason) == (5, End.LENGTH)
        await session.send(Cancel(1, 2, [long.row]))
        assert (await until_end(session, long.row))[1].reason == End.CANCELLED
        await session.send(Detach(1, 3))
        assert all(isinstance(event, Step) for event in await all_events(session))
        await session.aclose()
        await backend.aclose()


async def test_a_row_runs_and_ends(backend: TritonBackend) -> None:
    epoch, row = next(EPOCHS), new_row(5)
    session = await backend.attach(Attach(epoch, "driver"))
    assert session.attached.version in (CONTRACT_VERSION - 1, CONTRACT_VERSION)
    await session.send(Batch(epoch, 1, [row]))
    assert await until_end(session, row.row) == (list(range(FIRST, FIRST + 5)), Ended(row.row, End.LENGTH))
    await session.aclose()
    await session.aclose()


async def test_controls_arrive_in_the_order_of_sending(backend: TritonBackend) -> None:
    """The stand-in refuses a sequence number below an earlier one."""
    epoch = next(EPOCHS)
    session = await backend.attach(Attach(epoch, "driver"))
    await asyncio.gather(*(session.send(Cancel(epoch, seq, [])) for seq in range(1, 300)))
    await until_taken(session, 299)
    await session.aclose()


async def test_storms_of_cancels_and_of_broken_sessions_leave_triton_alive(
    stack: local.Stack, backend: TritonBackend
) -> None:
    server, stub = stack.pid("triton"), stack.stub_pid("triton")
    await storm.cancels(backend, next(EPOCHS), 100)
    for _ in range(5):
        await storm.kills(stack.triton_address, "llm", next(EPOCHS), 1)
    epoch, row = next(EPOCHS), new_row(5)
    session = await backend.attach(Attach(epoch, "driver"))
    await session.send(Batch(epoch, 1, [row]))
    assert (await until_end(session, row.row))[1].reason == End.LENGTH
    assert (stack.pid("triton"), stack.stub_pid("triton")) == (server, stub)
    await session.send(Cancel(epoch, 2, [live.row for live in session.attached.rows]))
    await session.aclose()


async def test_a_higher_epoch_takes_over_and_finds_the_rows(backend: TritonBackend) -> None:
    low, high, row = next(EPOCHS), next(EPOCHS), new_row(FOREVER)
    first = await backend.attach(Attach(low, "driver"))
    await first.send(Batch(low, 1, [row]))
    await until_taken(first, 1)
    second = await backend.attach(Attach(high, "other driver"))
    assert [live.row for live in second.attached.rows] == [row.row]
    with pytest.raises(Outranked) as outranked:
        await all_events(first)
    assert outranked.value.epoch == high
    with pytest.raises(Outranked):
        await first.send(Cancel(low, 2, [row.row]))
    with pytest.raises(Outranked):
        await backend.attach(Attach(low, "driver"))
    await second.send(Cancel(high, 1, [row.row]))
    assert (await until_end(second, row.row))[1].reason == End.CANCELLED
    await first.aclose()
    await second.aclose()


async def test_rows_go_on_when_the_session_is_closed(backend: TritonBackend) -> None:
    row, epoch = new_row(FOREVER), next(EPOCHS)
    session = await backend.attach(Attach(epoch, "driver"))
    await session.send(Batch(epoch, 1, [row]))
    await session.aclose()
    epoch = next(EPOCHS)
    again = await backend.attach(Attach(epoch, "driver"))
    assert [live.row for live in again.attached.rows] == [row.row]
    await again.send(Cancel(epoch, 1, [row.row]))
    await again.aclose()


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"not a message", b"\x81\xa4type\xa4nope"])
async def test_malformed_bytes_are_answered(stack: local.Stack, backend: TritonBackend, raw: bytes) -> None:
    async with tritonclient.InferenceServerClient(stack.triton_address) as client:
        assert "ContractError: " in await error_of(client, raw)
    assert await backend.ready()


async def error_of(client: tritonclient.InferenceServerClient, raw: bytes) -> str:
    tensor = InferInput("message", [len(raw)], "UINT8")
    tensor.set_data_from_numpy(numpy.frombuffer(raw, numpy.uint8))

    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "llm", "inputs": [tensor]}

    answers = client.stream_infer(requests())
    result, error = await asyncio.wait_for(anext(answers), 5)
    assert result is None or isinstance(result, InferResult)
    assert error is not None
    return str(error)


async def test_a_caller_that_gives_up_leaves_the_session_whole(backend: TritonBackend) -> None:
    epoch, row = next(EPOCHS), new_row(5)
    session = await backend.attach(Attach(epoch, "driver"))
    asking = asyncio.create_task(session.probe())
    await asyncio.sleep(0)
    asking.cancel()
    reading = asyncio.create_task(all_events(session))
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.wait({asking, reading})
    await session.send(Batch(epoch, 2, [row]))
    assert (await until_end(session, row.row))[1].reason == End.LENGTH
    await session.aclose()


async def test_a_killed_gateway_leaves_the_engine(stack: local.Stack, backend: TritonBackend) -> None:
    epoch = next(EPOCHS)
    command = [sys.executable, "-m", "tests.stack.holder", stack.triton_address, str(epoch)]
    gateway = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert gateway.stdout is not None
    await gateway.stdout.readline()
    gateway.kill()
    await gateway.wait()
    session = await backend.attach(Attach(next(EPOCHS), "driver"))
    await session.aclose()


async def bring_back(stack: local.Stack, backend: TritonBackend) -> None:
    """The server ends with a process of its own that is lost, or is when another takes its place."""
    try:
        await backend.reload(60)
    except BackendLost:
        async with asyncio.timeout(10):
            while stack.is_running("triton"):
                await asyncio.sleep(0.01)
        await stack.restart("triton")
    assert len(regions(stack)) == 1
    session = await backend.attach(Attach(1, "driver"))
    assert session.attached.rows == []
    await session.aclose()


async def attached(stack: local.Stack, backend: TritonBackend) -> TritonSession:
    """A server that is about to abort may answer until then; once it has, it is started again."""
    while True:
        with contextlib.suppress(BackendLost):
            return await backend.attach(Attach(1, "driver"))
        if not stack.is_running("triton"):
            await stack.restart("triton")
        await asyncio.sleep(0.01)


def regions(stack: local.Stack) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{shm_prefix(stack.run_dir)}*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_process_is_told_and_replaced(
    stack: local.Stack, backend: TritonBackend, number: signal.Signals
) -> None:
    """A dead one within 2 s: Triton takes one to say so when asked.  A stopped one when it owes an answer."""
    epoch, row = next(EPOCHS), new_row(FOREVER)
    session = await backend.attach(Attach(epoch, "driver"))
    await session.send(Batch(epoch, 1, [row]))
    process = stack.stub_pid("triton")
    os.kill(process, number)
    async with asyncio.timeout(2 if number == signal.SIGKILL else 7):
        with pytest.raises(BackendLost):
            await all_events(session)
    assert not await backend.ready()
    await session.aclose()
    await bring_back(stack, backend)
    assert process not in marked(stack.run_dir)


async def test_a_hung_engine_answers_until_it_is_replaced(stack: local.Stack, backend: TritonBackend) -> None:
    """Its silence is the driver's to judge: only the driver knows how long a step may take."""
    session = await backend.attach(Attach(next(EPOCHS), "driver"))
    await session.send(Batch(session.attached.epoch, 1, [new_row(FOREVER, first=HANG)]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(all_events(session), 1)
    assert await backend.ready()
    process = stack.stub_pid("triton")
    await session.aclose()
    await bring_back(stack, backend)
    assert process not in marked(stack.run_dir)


async def test_an_engine_whose_thread_ended_is_not_ready(stack: local.Stack, backend: TritonBackend) -> None:
    session = await backend.attach(Attach(next(EPOCHS), "driver"))
    await session.send(Batch(session.attached.epoch, 1, [new_row(FOREVER, first=DIE)]))
    async with asyncio.timeout(2):
        with pytest.raises(BackendLost, match="the engine is dead"):
            await all_events(session)
    assert not await backend.ready()
    await session.aclose()
    await bring_back(stack, backend)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_server_that_does_not_end_gets_another_process(tmp_path: Path, number: signal.Signals) -> None:
    """But for one of ten, which aborts: the process had a lock in shared memory."""
    template = standin.template(tmp_path / "llm")
    config = template / "config.pbtxt"
    config.write_text(re.sub(r'("ends_server" value { string_value: )"true"', r'\1"false"', config.read_text()))
    async with local.Stack(model="standin", template=template, redis_url="none", threads=2000) as stack:
        process = stack.stub_pid("triton")
        backend = TritonBackend(stack.triton_address, "llm")
        session = await backend.attach(Attach(1, "driver"))
        os.kill(process, number)
        with contextlib.suppress(BackendLost):
            await backend.revive()
        await session.aclose()
        session = await attached(stack, backend)
        await session.aclose()
        await backend.aclose()
        assert process not in marked(stack.run_dir)


async def test_a_load_that_hangs_is_given_up_and_tried_again(tmp_path: Path) -> None:
    """By a new server: a process that is still there would take an old one along."""
    template = standin.template(tmp_path / "llm")
    async with local.Stack(model="standin", template=template, redis_url="none") as stack:
        config = stack.run_dir / "models" / "triton" / "llm" / "config.pbtxt"
        good = config.read_text()
        config.write_text(good.replace('"1800"', '"1"').replace('"standin"', '"sleeper"'))
        with pytest.raises(StartFailed, match=r"standin_engine\.py"):
            await stack.restart("triton")
        config.write_text(good)
        backend = TritonBackend(stack.triton_address, "llm")
        await backend.revive()
        await (await backend.attach(Attach(1, "driver"))).aclose()
        await backend.aclose()


async def test_a_dead_server_is_told_at_once(stack: local.Stack, backend: TritonBackend) -> None:
    session = await backend.attach(Attach(next(EPOCHS), "driver"))
    stack.kill("triton", signal.SIGKILL)
    async with asyncio.timeout(2):
        with pytest.raises(BackendLost, match="UNAVAILABLE"):
            await all_events(session)
    await session.aclose()
    with pytest.raises(BackendLost):
        await backend.attach(Attach(next(EPOCHS), "driver"))
    await stack.restart("triton")
    await ready(backend, 10)


async def ready(backend: TritonBackend, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await backend.ready():
            pass
