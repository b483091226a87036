"""The queue of one model, shared by all gateways: two adapters of `ports.Store`, held to one contract suite.

- `redis`: Redis 6.2 or later, or Valkey; `lua/` holds its verbs, `common.lua` what they share
- `memory`: the same rules in one process, on any clock; for the simulator and for tests
- `keys`: the schema, every key built in one place
- `urls`, `home`: one server, Sentinels or a Cluster, and which server has the queue now
- `link`: how a question reaches it and comes back: deadline, cancellation, errors
- `breaker`: when none is asked, because it does not answer
- `wire`: tickets and replies to and from bytes

The store moves tickets atomically, counts, and compares its counts with limits it is given.  Which ticket
goes next, in what company, and how many is the caller's business.
"""
