"""All of it on one GPU, gateway, Valkey, Triton and engine: `python -m benchmarks.gpu.stack [--out FILE]`.

First `bucketserve up` serves the demo model in float32, and what it answers must be what `generate()` says.  Then
it serves random weights of a larger shape, for one client at a time and for many at once; the same job by the
engine alone tells what the rest of the stack takes.  `--device cpu --tiny` runs every part on a toy in a minute.
"""

import argparse
import json
import resource
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu import exact, saturation
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import build
from benchmarks.speed import servers
from benchmarks.speed.model import VOCABULARY, write_tokenizer
from gateway.settings import DEMO_MODEL, Settings
from triton_backend.engine import Engine, EngineConfig
from triton_backend.paged_runner import PagedRunner

PORT = 8481
TEXTS = [f"The number {number} is" for number in range(16)]
ANSWER_TOKENS = 48
GATEWAYS = 1, 4
"""Before the same engine: each is one process, and takes its time for each token."""
PATIENT = ["--slo-ttft-ms", "600000", "--slo-tpot-ms", "60000"]
"""Nothing is refused: it is the job's end that counts."""


class Job(NamedTuple):
    requests: int
    prompt_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.prompt_tokens} in / {self.output_tokens} out"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.stack", description=str(__doc__).split(":")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that every part runs")
    parser.add_argument("--out", type=Path, help="JSON of what was found, written as it comes")
    parser.add_argument("--logs", type=Path, help="folder where all servers' logs stay, also of a run that fails")
    options = parser.parse_args()
    report = Report(options.out)
    shape, job, single = "1.5b", Job(256, 1000, 256), Job(20, 200, 64)
    if options.tiny:
        shape, job, single = "tiny", Job(8, 100, 8), Job(4, 20, 8)
    answer(report, options.device)
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(passing) / "model"
        write_model(folder, shape, options.device)
        logs = options.logs or Path(passing) / "logs"
        took_s = [
            load(report, options.device, folder, logs, shape, job, single, gateways) for gateways in GATEWAYS
        ]
        alone_s = by_engine_alone(options.device, folder, job)
    ratios = " and ".join(f"{together_s / alone_s:.2f}" for together_s in took_s)
    report.add(shape, f"{job}, engine alone", f"{alone_s:.2f} s; the whole stack takes {ratios} times as long")
    print(report.table(), flush=True)


def answer(report: Report, device: str) -> None:
    """The demo model's greedy answers, all asked for at once."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    torch.nn.Module.to(model, device)
    answers = [exact.generated(model, tokenizer(text).input_ids, ANSWER_TOKENS) for text in TEXTS]
    expected = tokenizer.batch_decode(answers, skip_special_tokens=True)
    with servers.ours(PORT, "--device", device, "--dtype", "float32") as url:

        def ask(text: str) -> str:
            body = {"model": "demo", "prompt": text, "max_tokens": ANSWER_TOKENS, "temperature": 0}
            said = _post(f"{url}/v1/completions", body)["choices"][0]["text"]
            assert isinstance(said, str)
            return said

        with ThreadPoolExecutor(len(TEXTS)) as pool:
            said = list(pool.map(ask, TEXTS))
    num_equal = sum(one == other for one, other in zip(said, expected, strict=True))
    report.add("demo", "greedy float32 answers that are generate()'s", f"{num_equal} of {len(TEXTS)}")


def _post(url: str, body: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def write_model(folder: Path, shape: str, device: str) -> None:
    build(shape, device, torch.bfloat16, vocab_size=VOCABULARY, eos_token_id=0).save_pretrained(folder)
    write_tokenizer(folder)


def load(
    report: Report, device: str, folder: Path, logs: Path, shape: str, job: Job, single: Job, gateways: int
) -> float:
    """Seconds that the job took."""
    flags = ["--model", str(folder), "--device", device, "--dtype", "bfloat16", "--gateways", str(gateways)]
    flags += ["--run-folder", str(logs / f"gateways-{gateways}")]
    ports = Settings(port=PORT, gateways=gateways).own_ports or [PORT]
    out = folder.parent / f"gateways-{gateways}"
    out.mkdir()
    with servers.ours(PORT, *flags) as url:
        one, alone_s = _bench(url, out / "single", single, every_s=0.5)
        before_s = sum(map(_processor_s, ports))
        many, client_s = _bench(url, out / "job", job, every_s=0.0)
        gateway_s = sum(map(_processor_s, ports)) - before_s
    assert one["finished"] == single.requests and many["finished"] == job.requests, (one, many)
    took_s = float(job.requests * job.output_tokens / many["output_tokens_per_s"])
    named = f"{gateways} gateway{'s' if gateways > 1 else ''}"
    report.add(shape, f"{named}, {single}, one every 0.5 s", _latencies(one))
    report.add(
        shape,
        f"{named}, {job}, all at once",
        f"{took_s:.2f} s, {many['output_tokens_per_s']:,.0f} tok/s; {_latencies(many)}; processor time: "
        f"{gateway_s:.1f} s in all gateways, {client_s - alone_s:.1f} s of the client",
    )
    return took_s


def _processor_s(port: int) -> float:
    """That the gateway has used so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == "process_cpu_seconds_total")


def _latencies(total: dict[str, Any]) -> str:
    ttft, tpot = total["ttft_s"], total["tpot_s"]
    return (
        f"TTFT P50 {ttft['p50'] * 1e3:.1f}, P99 {ttft['p99'] * 1e3:.1f} ms, "
        f"TPOT P50 {tpot['p50'] * 1e3:.2f}, P99 {tpot['p99'] * 1e3:.2f} ms"
    )


def _bench(url: str, out: Path, job: Job, every_s: float) -> tuple[dict[str, Any], float]:
    """The figures of `bucketserve bench`, and its processor time."""
    out.mkdir()
    rows = [f"{number * every_s},{job.prompt_tokens},{job.output_tokens}\n" for number in range(job.requests)]
    trace = out / "trace.csv"
    trace.write_text("".join(["arrival_s,prompt_tokens,output_tokens\n", *rows]))
    flags = ["--trace", str(trace), "--requests", str(job.requests), "--vocabulary", str(VOCABULARY), *PATIENT]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    total: dict[str, Any] = servers.bench(url, out, *flags)["total"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return total, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_engine_alone(device: str, folder: Path, job: Job) -> float:
    """Seconds of the same job without gateway, Valkey and Triton."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.nn.Module.to(model, device)
    config = EngineConfig(model="", name="gpu", device=device)
    budget_bytes = None if device.startswith("cuda") else 2**24
    runner = PagedRunner(model, max_prefill_tokens=config.chunk_tokens, kv_budget_bytes=budget_bytes)
    # The first does not count: the stack has answered others, too, before it gets the job.
    for _ in range(2):
        engine = Engine(config, lambda _: runner)
        took_s = saturation.time_job(engine, runner.vocabulary, *job)
        engine.stop(0.0)
    return took_s


if __name__ == "__main__":
    main()
