"""The gateway: many stateless processes, one queue.

Floors, an upper one imports a lower one, never back (held by import-linter):

- `__main__`: the command line
- `simulator`: the same driver and policies on virtual time, over engines that only take time
- `up`, `bench`: a whole system on this machine; a load on any, measured from outside
- `app`, `local`: putting a process together; starting and supervising the embedded servers
- `server`, `settings`: HTTP; the one settings tree
- `middleware`, `keyring`, `reservations`: who may come in, and what of their quotas they take
- `driver`, `origin`, `reader`, `openai`: the loop of one replica; the requests of this gateway; bodies of all
  sizes; the wire format
- `store`, `triton`, `tokenizer`, `metrics`: adapters to the world; `profiler`: what gateways learn together
- `ports`: the protocols those adapters fill
- `policy`, `load`: pure decisions; workloads, records and reports of benchmark and simulator
- `request`, `errors`, `quota`: the words

`policy`, `load`, `openai`, `request` and `errors` are pure: no clock, randomness, os, asyncio, redis.  Only
`triton_backend.contract` and `triton_backend.memory` are shared with the engine; the simulator also plans with its
`plan` and `sequence`, and `fit` measures it.
"""

__version__ = "0.1.0"
