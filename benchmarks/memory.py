"""Memory, live: `python -m benchmarks.memory follow`, and `python -m benchmarks.memory fixed`.

`follow` serves a model whose keys and values are large (random weights) while its engine shares a control group
with a hog that takes and frees half of it.  Prints how much the engine had of what is free and its own, how fast
it followed, and whether any answer failed or came out otherwise than another time; --out keeps all samples.

`fixed` answers the same requests of very different lengths with the model of the speed benchmarks and the same KV
memory, in batches of fixed sizes and under `full`.  A row that the engine evicts or refuses for want of memory is
put back and completes; a server that does not put back would have failed it, so it is counted as such.
"""

import argparse
import asyncio
import csv
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.control_group import ControlGroup, limited
from benchmarks.speed import model as speed_model
from gateway import local
from gateway.settings import DEMO_MODEL

MIB = 2**20
PATIENT = {"x-slo-ttft-ms": "3600000", "x-slo-tpot-ms": "600000"}
"""Nobody is refused, and memory alone bounds the rows."""

GROUP_MIB = 1024
PREFILL_TOKENS = 512
CLIENTS = 80
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 64, (50, 400), (8, 64)
CALM_S, HELD_S = 15.0, 15.0
CYCLES = 2
SAMPLE_S = 0.1

FIXED_KV_MIB = 144
"""6,144 tokens."""
FIXED_REQUESTS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("follow", "fixed"))
    parser.add_argument("--sizes", default="4,8,16", help="of the batches of `fixed`, with commas")
    parser.add_argument("--out", type=Path, help="file for the samples of `follow`, as CSV")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    asyncio.run(follow(options.out) if options.what == "follow" else fixed(sizes))


# Following


class Sample(NamedTuple):
    """The gateway's metrics have their names."""

    at_s: float
    hog_bytes: int
    taken_bytes: int
    """By the engine since it is in the group: keys, values, workspace and whatever else."""
    kv_capacity_bytes: float
    kv_used_bytes: float
    running_rows: float
    waiting_rows: float
    shared_queue_tickets: float
    out_of_memory_total: float

    @property
    def usable_bytes(self) -> int:
        """Free and the engine's."""
        return GROUP_MIB * MIB - self.hog_bytes


class Cycle(NamedTuple):
    """When the hog (time.monotonic)"""

    asks_s: float
    has_s: float
    frees_s: float
    ends_s: float


class Answers:
    """What came back, by request."""

    def __init__(self) -> None:
        self.texts: dict[int, set[str]] = {}
        self.num_answers = self.num_failed = 0

    def add(self, number: int, text: str | None) -> None:
        self.num_answers += 1
        if text is None:
            self.num_failed += 1
        else:
            self.texts.setdefault(number, set()).add(text)


async def follow(out: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder, limited(GROUP_MIB * MIB) as group:
        _make_model(Path(folder))
        async with (
            local.Stack(model=folder, name="fat", dtype="float32", max_prefill_tokens=PREFILL_TOKENS) as stack,
            _gateway(stack, folder, "fat", prefill_tokens=PREFILL_TOKENS) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=PATIENT) as session,
        ):
            group.add(stack.stub_pid("triton"))
            async with _hog(group) as hog:
                answers, samples = Answers(), list[Sample]()
                tasks = [asyncio.create_task(_client(session, url, at, answers)) for at in range(CLIENTS)]
                tasks.append(asyncio.create_task(_watch(session, url, group, hog, samples)))
                cycles = await _take_and_free(hog)
                for task in tasks:
                    task.cancel()
                for end in await asyncio.gather(*tasks, return_exceptions=True):
                    if not isinstance(end, asyncio.CancelledError):
                        raise SystemExit(f"a client ended: {end!r}")
                page = await _page(session, url)
    if out:
        with out.open("w", newline="") as file:
            csv.writer(file).writerows([Sample._fields, *samples])
    _print_following(samples, cycles, answers, page)


def _make_model(folder: Path) -> None:
    """96 KiB of keys and values a token, and hardly any work."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=2560,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(DEMO_MODEL) / name, folder)


async def _client(session: aiohttp.ClientSession, url: str, seed: int, answers: Answers) -> None:
    """Asks one of a few things again and again."""
    choose = random.Random(seed)
    while True:
        number = choose.randrange(PROMPTS)
        text = await _ask(session, url, "fat", *_request(number, PROMPT_TOKENS, ANSWER_TOKENS))
        answers.add(number, text)


def _request(number: int, prompt_tokens: tuple[int, int], answer_tokens: tuple[int, int]) -> tuple[list[int], int]:
    rng = random.Random(number)
    prompt = [rng.randrange(5, 2500) for _ in range(rng.randint(*prompt_tokens))]
    return prompt, rng.randint(*answer_tokens)


async def _ask(
    session: aiohttp.ClientSession, url: str, model: str, prompt: list[int], max_tokens: int
) -> str | None:
    """The answer, or None."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    body["temperature"] = 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            print(response.status, await response.text(), file=sys.stderr)
            return None
        answer = await response.json()
    if answer["usage"]["completion_tokens"] != max_tokens:
        return None
    return str(answer["choices"][0]["text"])


class Hog:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._base_bytes = _resident_bytes(process.pid)

    @property
    def held_bytes(self) -> int:
        return _resident_bytes(self._process.pid) - self._base_bytes

    async def hold(self, mib: int) -> float:
        """Returns when it has them: the time."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{mib}\n".encode())
        return float(await self._process.stdout.readline())


@asynccontextmanager
async def _hog(group: ControlGroup) -> AsyncIterator[Hog]:
    argv = ("-m", "benchmarks.hog", str(group.folder / group.usage), str(GROUP_MIB * MIB))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdin=pipe, stdout=pipe)
    try:
        await asyncio.sleep(1.0)  # Python has started: what it has is not counted in the group.
        group.add(process.pid)
        yield Hog(process)
    finally:
        process.kill()
        await process.wait()


async def _take_and_free(hog: Hog) -> list[Cycle]:
    cycles = []
    await asyncio.sleep(CALM_S)
    for _ in range(CYCLES):
        asks_s = time.monotonic()
        has_s = await hog.hold(GROUP_MIB // 2)
        await asyncio.sleep(HELD_S)
        frees_s = await hog.hold(0)
        await asyncio.sleep(CALM_S)
        cycles.append(Cycle(asks_s, has_s, frees_s, time.monotonic()))
    return cycles


async def _watch(
    session: aiohttp.ClientSession, url: str, group: ControlGroup, hog: Hog, samples: list[Sample]
) -> None:
    while True:
        page = await _page(session, url)
        hog_bytes, at_s = hog.held_bytes, time.monotonic()
        taken_bytes = group.usage_bytes - hog_bytes
        figures = (_sum(page, name) for name in Sample._fields[3:])
        samples.append(Sample(at_s, hog_bytes, taken_bytes, *figures))
        await asyncio.sleep(SAMPLE_S)


def _print_following(samples: list[Sample], cycles: list[Cycle], answers: Answers, page: str) -> None:
    filled_s = next(s.at_s for s in samples if s.taken_bytes >= 0.8 * s.usable_bytes)
    waiting = [s for s in samples if s.at_s >= filled_s and s.shared_queue_tickets]
    taking = [s for s in waiting if any(cycle.asks_s <= s.at_s < cycle.has_s for cycle in cycles)]
    calm = [s for s in waiting if s not in taking]
    print(f"{len(waiting)} samples while requests wait, of {len(samples)}; of free and the engine's own memory")
    for name, some in (("all", waiting), ("while the hog takes", taking), ("else", calm)):
        taken = [s.taken_bytes / s.usable_bytes for s in some]
        used = [s.kv_used_bytes / s.usable_bytes for s in some]
        over = sum(part > 0.95 for part in taken)
        print(
            f"  {name}: taken mean {_mean(taken):.3f}, most {max(taken):.3f} ({over} over 0.95); "
            f"KV in use mean {_mean(used):.3f}, most {max(used):.3f}"
        )
    for cycle in cycles:
        told_s = _first(samples, cycle.frees_s, lambda s: s.kv_capacity_bytes > 0.8 * s.usable_bytes)
        back_s = _first(samples, cycle.frees_s, lambda s: s.taken_bytes > 0.8 * s.usable_bytes)
        ahead_s = _first(samples, cycle.has_s, lambda s: s.kv_capacity_bytes < 0.95 * s.usable_bytes)
        spans = ((cycle.asks_s - 5, cycle.asks_s), (cycle.has_s, cycle.frees_s), (cycle.ends_s - 5, cycle.ends_s))
        rows = [_mean([s.running_rows for s in samples if first <= s.at_s < last]) for first, last in spans]
        print(
            f"half taken in {cycle.has_s - cycle.asks_s:.1f} s, told after {ahead_s:.2f} s; "
            f"freed, told after {told_s:.2f} s, in use after {back_s:.1f} s; rows "
            + ", ".join(map("{:.0f}".format, rows))
        )
    differing = sum(len(texts) > 1 for texts in answers.texts.values())
    print(f"{answers.num_answers} answers, {answers.num_failed} failed")
    print(f"{differing} of {PROMPTS} prompts had different answers")
    print(f"put back {_put_backs(page):.0f}, out of memory {samples[-1].out_of_memory_total:.0f}")


def _first(samples: list[Sample], after_s: float, is_so: Callable[[Sample], bool]) -> float:
    """Seconds until it is so."""
    return next((s.at_s - after_s for s in samples if s.at_s >= after_s and is_so(s)), math.inf)


# Fixed batches


async def fixed(sizes: Sequence[int]) -> None:
    """Prints a table."""
    print("| batches | requests/s | tokens/s | s | would have failed | failed |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        speed_model.make(Path(folder))
        for size in (*sizes, None):
            print(await _run_fixed(folder, size), flush=True)


async def _run_fixed(model: str, size: int | None) -> str:
    """A row of the table; None: `full`."""
    rng = random.Random(2)
    requests = [_heterogeneous(rng) for _ in range(FIXED_REQUESTS)]
    async with (
        local.Stack(model=model, name="bench", dtype="bfloat16", kv_budget_bytes=FIXED_KV_MIB * MIB) as stack,
        _gateway(stack, model, "bench", size=size) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=PATIENT) as session,
    ):
        begun_s = time.monotonic()
        asked = (_ask(session, url, "bench", *request) for request in requests)
        answers = await asyncio.gather(*asked)
        took_s = time.monotonic() - begun_s
        put_back = _put_backs(await _page(session, url))
    tokens = sum(max_tokens for _, max_tokens in requests)
    name = f"{size} rows, run to the end" if size else "`full`"
    return (
        f"| {name} | {FIXED_REQUESTS / took_s:.2f} | {tokens / took_s:.0f} | {took_s:.1f} "
        f"| {put_back:.0f} | {answers.count(None)} |"
    )


def _heterogeneous(rng: random.Random) -> tuple[list[int], int]:
    """Four in five short, one long."""
    prompt_tokens = rng.randint(16, 200) if rng.random() < 0.8 else rng.randint(500, 1500)
    return [rng.randrange(5, 2500) for _ in range(prompt_tokens)], rng.randint(8, 400)


# Both


@asynccontextmanager
async def _gateway(
    stack: local.Stack, model: str, name: str, *, size: int | None = None, prefill_tokens: int | None = None
) -> AsyncIterator[str]:
    """Its URL.  `size`: of fixed batches."""
    port = local.free_port()
    module = ("gateway", "gateway") if size is None else ("benchmarks.fixed_gateway", str(size))
    flags = {"model": model, "model-name": name, "port": str(port), "log-level": "error"}
    flags |= {"redis": stack.redis_url, "triton": stack.triton_address}
    if prefill_tokens is not None:
        flags["scheduling-max-prefill-tokens"] = str(prefill_tokens)
    argv = ("-m", *module, *(f"--{name}={value}" for name, value in flags.items()))
    process = await asyncio.create_subprocess_exec(sys.executable, *argv)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session:
            await _until_ready(session, url, process)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_ready(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    while process.returncode is None:
        try:
            async with session.get(f"{url}/ready") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"the gateway ended: {process.returncode}")


async def _page(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/metrics") as response:
        return await response.text()


def _sum(page: str, name: str) -> float:
    """Over all labels."""
    return sum(map(float, re.findall(rf"^bucketserve_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)))


def _put_backs(page: str) -> float:
    """Rows for which the engine had no memory."""
    found = re.findall(r'^bucketserve_put_backs_total{reason="(?:evicted|refused)"} (\S+)$', page, re.MULTILINE)
    return sum(map(float, found))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
