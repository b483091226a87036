"""The engine in a process whose address space is limited, for test_starved.py: prints one JSON object.

Serves the same rows before the limit and with it.
"""

import json
import mmap
import random
import resource
from contextlib import suppress
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.peer import Peer, new_row
from triton_backend.contract import End, NewRow
from triton_backend.engine import Engine, EngineConfig
from triton_backend.runner import Runner

ROWS = 32
VOCABULARY = 32_768
"""So that a step's logits are its largest tensors: 4 MiB for all rows."""
PIECE_BYTES = 2**20
SPARE_BYTES = 2 * PIECE_BYTES
PREFILL_TOKENS = 5120
"""All rows in one chunk."""


def rows() -> list[NewRow]:
    rng = random.Random(1)
    return [
        new_row(at, [rng.randrange(VOCABULARY) for _ in range(rng.randint(100, 140))], 6) for at in range(ROWS)
    ]


def take_all() -> list[mmap.mmap]:
    """Address space until there is none: what was freed since it was looked how much is taken counts too."""
    held = []
    with suppress(OSError):
        while True:
            held.append(mmap.mmap(-1, PIECE_BYTES))
    return held


def serve(runner: Runner) -> Peer:
    engine = Engine(EngineConfig(model="", name="starved", max_prefill_tokens=PREFILL_TOKENS), lambda _: runner)
    peer = Peer(engine)
    engine.step()
    peer.put(rows())
    peer.run()
    return peer


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    runner = Runner(LlamaForCausalLM(config), max_prefill_tokens=PREFILL_TOKENS, kv_budget_bytes=2**24)
    before = serve(runner)
    taken_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + SPARE_BYTES, resource.RLIM_INFINITY))
    held = take_all()
    del held[: SPARE_BYTES // PIECE_BYTES]
    starved = serve(runner)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    endings = [ticket.ending for ticket in starved.tickets.values()]
    found = {
        "exact": sum(ticket.tokens == before.tickets[name].tokens for name, ticket in starved.tickets.items()),
        "finished": sum(ending is not None and ending.reason is End.LENGTH for ending in endings),
        "attempts": sum(ticket.attempts for ticket in starved.tickets.values()),
        "decodes": sum(step.telemetry.decode_rows > 0 for step in starved.steps),
        "out_of_memory": [step.telemetry.out_of_memory_total for step in starved.steps],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
