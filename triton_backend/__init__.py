"""The engine behind one Triton model: floors, upper imports lower, never back.

adapter (the only file that knows Triton) > engine (one thread owns all state) > runner | plan | telemetry
> cache | sampling | sequence > contract | memory.

`contract`, `memory`, `sequence` and `plan` are pure: no clock, randomness, os, asyncio or torch.  The gateway
may import `contract` and `memory`; nothing here imports the gateway.
"""
