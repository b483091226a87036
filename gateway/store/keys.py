"""Every key in Redis, built here and nowhere else.

The queue's are `bs1:{model/shard}:<name>`: schema version first, then a hash tag, so that all keys
of one queue lie in one cluster slot.

Every script gets all of these as its KEYS, in this order.  For ticket, set, tag, leased, origin, inbox, record
and log the key is a prefix to which the script adds `:` and the rest, since only the script knows which tickets it
meets; the hash tag is in the prefix, so what it derives is in the same slot by construction.

What is left when every ticket is gone: served, buckets, origins (one member a gateway, pruned by reap),
drivers and standings (one field a replica, pruned by elect a day after its lease), gateways (pruned by assemble),
inboxes until they expire, samples and snapshot, all of bounded size,
and tags, records and logs until they expire.

A tenant's are `bs1:{tenants}:<tenant>:<name>`; they expire by themselves.  The API keys' are
`bs1:{tenants}:<name>`, and stay.  All are in one slot, so that one server of a Cluster has them.
"""

from typing import NamedTuple
from urllib.parse import quote


class Keys(NamedTuple):
    ticket: str
    """ticket:<id>, hash: meta, payload, attempt, origin, bin, class, score, at, slot, tokens, bytes, us; once
    leased also replica: a ticket is queued exactly if it has none.  It is leased to its replica's epoch."""
    set: str
    """set:<bin>:<class>, sorted set of <at><id> by score; `at` (20 digits) is the time of the first put and
    makes equal scores first in, first out."""
    heads: str
    """hash <bin>:<class> -> "count score id" of every non-empty set."""
    sums: str
    """hash of what is queued: tickets, tokens, bytes in all, and per class and deadline slot the backlog,
    <class>:<slot>:tokens and <class>:<slot>:us (predicted microseconds: integers add up exactly)."""
    tag: str
    """tag:<class>:<tenant>, string: the fairness tag; it expires when it lies in the past."""
    served: str
    """hash class -> figure."""
    buckets: str
    """string "version bound bound ..."."""
    leased: str
    """leased:<replica>, set of ids."""
    origin: str
    """origin:<gateway>, set of the ids it put, queued or leased."""
    origins: str
    """sorted set of gateways by the time until which they count as alive."""
    drivers: str
    """hash replica -> "epoch expiry gateway": the last epoch and, while expiry (microseconds) lies ahead, the
    lease; "epoch expiry" once it was given up."""
    standings: str
    """hash replica -> what its driver said of it last."""
    gateways: str
    """hash gateway -> "expiry drives card": those that are there, while expiry (microseconds) lies ahead."""
    inbox: str
    """inbox:<gateway>, stream of letters, capped; one field, letter."""
    record: str
    """record:<call>, hash: epoch, owner, begun (microseconds), content.  It expires."""
    log: str
    """log:<call>, string: what was drawn.  It expires with its record."""
    samples: str
    """stream of finished requests, capped; one field, sample."""
    snapshot: str
    """hash: version, data."""


class TenantKeys(NamedTuple):
    used: str
    """hash <second>:requests and <second>:tokens -> what was taken in that second; none older than 61 s."""
    streams: str
    """sorted set of the reservations' ids by the time (microseconds) until which they count."""
    held: str
    """hash id -> "second tokens" of each of them."""


class RecordKeys(NamedTuple):
    records: str
    """hash name -> record."""
    version: str
    """string; it grows with each change, and outlives the last record."""


def queue_keys(model: str, shard: int = 0) -> Keys:
    """A `}` in a model's name would end the hash tag early: quoted, as is everything that is not plain."""
    tag = f"{quote(model, safe='/', errors='surrogatepass')}/{shard}"
    return Keys(*(f"bs1:{{{tag}}}:{name}" for name in Keys._fields))


def tenant_keys(tenant: str) -> TenantKeys:
    return TenantKeys(*(f"bs1:{{tenants}}:{quote(tenant, safe='')}:{name}" for name in TenantKeys._fields))


def record_keys() -> RecordKeys:
    return RecordKeys(*(f"bs1:{{tenants}}:{name}" for name in RecordKeys._fields))
