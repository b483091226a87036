"""What all gateways share: the queue of one model (`ports.Store`), and tenants' use of their quotas
(`ports.Tenants`).  Each has two adapters, held to one contract suite.

- `redis`, `redis_tenants`: Redis 6.2 or later, or Valkey; `lua/` holds the verbs, `common.lua` what those of the
  queue share, `tenant.lua` what those of a quota do
- `memory`, `memory_tenants`: the same rules in one process, on any clock; for the simulator and for tests
- `minute`: what was used of a quota per minute
- `keys`: the schema, every key built in one place
- `urls`, `home`: one server, Sentinels or a Cluster, and which server has the queue now
- `scripts`, `link`, `pipe`: how a question reaches it and comes back: deadline, cancellation, errors
- `breaker`: when none is asked, because it does not answer
- `wire`: tickets and replies to and from bytes

The store moves tickets atomically, counts, and compares its counts with limits it is given.  Which ticket
goes next, in what company, and how many is the caller's business.
"""
