"""What the driver and the origin need from the world.  One contract suite runs over every adapter of a port."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol

import msgspec

from gateway.quota import Allowance, Quota
from gateway.request import Backlog, Delta, Queue, Request, ServiceClass, Tenant, Ticket
from triton_backend.contract import Attach, Attached, Batch, Cancel, Detach, Event, Evict

MAX_SAMPLES = 8192
"""Finished requests that the store keeps to learn from."""
MAX_SNAPSHOT_BYTES = 1 << 20
MAX_SHOWN = 16
"""Tickets of a queue that is shown whole."""
MAX_LETTERS = 1000
"""Letters that the store keeps for a gateway: what a fast engine says in some ten seconds."""
INBOX_TTL_S = 30.0
"""An inbox that nobody writes to goes after so long: its gateway may be gone."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds on everything queued (not running) for one model."""

    max_tickets: int
    max_tokens: int
    """Sum of prompt tokens."""
    max_bytes: int
    """Sum of payload sizes."""
    max_seconds: float = inf
    """Sum of predicted engine time: what admission relied on."""
    max_lead_s: float = inf
    """A tenant's virtual clock is taken to be ahead by so much at most: as long as all that waits before the
    call's last ticket will take."""


class Entry(msgspec.Struct, frozen=True):
    """A ticket and its payload (opaque to the store)."""

    ticket: Ticket
    payload: bytes

    def scored(self, score: float) -> "Entry":
        """With the score that the store gave it."""
        return Entry(msgspec.structs.replace(self.ticket, score=score), self.payload)


class Seat(msgspec.Struct, frozen=True):
    """A replica's driver, and what it said of the replica last."""

    gateway: str
    standing: bytes
    """Opaque to the store; empty before the first renewal."""


NO_REPLICA = ":"
"""What names begin with that are elected for, but are no replica's: work that one gateway does for all."""


class Peer(msgspec.Struct, frozen=True):
    """A gateway, as it says of itself."""

    drives: bool
    """It would drive replicas."""
    card: bytes
    """Opaque to the store."""


class Assembly(msgspec.Struct, frozen=True):
    """Who is there."""

    gateways: Mapping[str, Peer]
    seats: Mapping[str, Seat]
    """The replicas, and names with NO_REPLICA, that have a driver."""


class Record(msgspec.Struct, frozen=True):
    """What a call is to be run again from, and who may."""

    call: str
    epoch: int
    """Of its origin: each that adopts it has a higher one."""
    owner: str
    """Name of the key that made the call; only the same may adopt it."""
    age_s: float
    """Of the call."""
    content: bytes
    """Opaque to the store."""
    log: bytes = b""
    """What its log says so far."""


class LogWrite(msgspec.Struct, frozen=True):
    """What a call's log says from some byte on."""

    call: str
    epoch: int
    offset: int
    data: bytes
    prolongs: bool = True


class Written(StrEnum):
    """What became of a write to a record or its log."""

    DONE = "done"
    FENCED = "fenced"
    """Another origin has adopted the call."""
    MISSING = "missing"
    """The store has no such record, or less of its log than the offset."""


class Adopted(msgspec.Struct, frozen=True):
    epoch: int
    """The adopter's."""
    former_epoch: int
    """The last origin's."""
    age_s: float
    content: bytes
    log: bytes


class Store(Protocol):
    """The queue of one model, shared by all gateways.

    Verbs are idempotent unless they say otherwise, and atomic; put_back, finish, cancel and audit may take a
    long list in parts.  Every verb raises StoreLost if the store does not answer; a verb that is cancelled
    has ended when CancelledError arrives.  A ticket is unknown, queued, or leased to a replica, whatever the
    replica's epoch.
    """

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        """Queue a call's tickets, all or none; their scores, which the caller keeps in its tickets.

        score = max(now, min(tag[tenant, class], now + max_lead_s)) + slack_s, and the tag advances by cost_s
        (start-time fair queueing).  A ticket already known is left as it is.  Raises QueueFull, and
        ValueError for times that are not finite, or absurd.
        """

    async def start(
        self, replica: str, epoch: int, entries: Sequence[Entry], served: Mapping[ServiceClass, float]
    ) -> list[float] | None:
        """Put a call's tickets and claim them in one, where nothing waits: their scores, with the tenant's clock
        no further than now.  None, and nothing was done, if something waits or one of them is known.  Raises
        LeaseLost unless this epoch holds the replica's lease, and ValueError as `put` does."""

    async def put_back(self, entries: Sequence[Entry]) -> None:
        """Queue tickets again under a higher attempt, with the score they carry, whatever the store knew of
        earlier attempts.  No bound applies: they were admitted.  A known attempt at or above is left as it
        is."""

    async def queue(self) -> Queue:
        """The heads of all non-empty sets and the shared figures; and the tickets, if MAX_SHOWN wait or fewer."""

    async def peek(self, sets: Sequence[tuple[int, ServiceClass]], limit: int) -> list[Ticket]:
        """Up to `limit` queued tickets of those sets, best score first, nothing removed."""

    async def claim(
        self,
        replica: str,
        epoch: int,
        tickets: Sequence[tuple[str, int]],
        served: Mapping[ServiceClass, float],
    ) -> list[Entry]:
        """Lease those (id, attempt) that are still queued to the replica, in the given order; `served` is
        stored as the classes' new figures if anything was claimed.  Raises LeaseLost unless this epoch holds
        the replica's lease."""

    async def finish(self, tickets: Sequence[tuple[str, int]]) -> None:
        """Forget (id, attempt)s, queued or leased.  Another attempt is left as it is."""

    async def cancel(self, tickets: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """Forget tickets up to the given attempts, higher ones being somebody else's; (id, replica) of those that
        were leased."""

    async def audit(self, gateway: str, live: Sequence[tuple[str, int]], lease_s: float) -> list[str]:
        """Ids of those (id, attempt)s that are neither queued nor leased.  Also the gateway's sign of life as
        an origin, good for `lease_s`."""

    async def reap(self, limit: int) -> list[tuple[str, str]]:
        """Forget up to `limit` tickets of origins that put some and gave no sign of life for their lease (a
        put is one too): (id, replica) of those that were leased, so that their rows can be cancelled."""

    async def sweep(self, replica: str, epoch: int, live: Sequence[tuple[str, int]]) -> list[str]:
        """Forget every ticket leased to the replica that is not among `live` (its engine does not have it);
        the others stay leased.  The ids forgotten; the audit of their origins brings them back.  Raises
        LeaseLost unless this epoch holds the replica's lease."""

    async def elect(self, replica: str, gateway: str, lease_s: float) -> int | None:
        """Become the replica's driver: the new epoch, max(last + 1, clock in microseconds), or None while
        another gateway holds the lease.  Not idempotent."""

    async def renew(self, replica: str, epoch: int, lease_s: float, standing: bytes) -> bool:
        """Prolong the lease and tell everybody how the replica stands.  One that ran out is taken up again; False
        if another gateway was elected since, or it was given up."""

    async def resign(self, replica: str, epoch: int) -> None:
        """Give the lease up, if it is still this epoch's."""

    async def assemble(self, gateway: str, peer: Peer, life_s: float) -> Assembly:
        """Be seen as this for `life_s`, or with 0 no more, and see who is there."""

    async def post(self, letters: Mapping[str, bytes]) -> None:
        """Append a letter to each of these gateways' inboxes, of which the latest MAX_LETTERS are kept.  Not
        idempotent."""

    async def collect(self, gateway: str, after: str, limit: int, wait_s: float) -> list[tuple[str, bytes]]:
        """Up to `limit` (id, letter)s of an inbox, in order, from the one after the id `after` on, or if that is
        empty from the oldest; waits up to `wait_s` for the first."""

    async def keep(self, records: Sequence[Record], ttl_s: float) -> list[Written]:
        """Keep each record and log for `ttl_s` instead of what was there; one of a higher epoch stays (FENCED)."""

    async def log(self, writes: Sequence[LogWrite], ttl_s: float) -> list[Written]:
        """Write to the logs of these records, each where it ends or before.  Record and log are kept for `ttl_s`
        from now if the write prolongs them, be it empty, or the log was."""

    async def adopt(self, call: str, owner: str, ttl_s: float) -> Adopted | None:
        """Take a call over: its record, its log, and the new epoch, max(last + 1, clock in microseconds).  None if
        the owner has none such.  Not idempotent."""

    async def rebucket(self, bounds: tuple[int, ...], version: int) -> bool:
        """Replace the bucket table if its version is still `version` (the new one is version + 1)."""

    async def backlog(self, service_class: ServiceClass, tenant: str) -> Backlog:
        """Queued work per class and deadline slot, and where the tenant stands in the class."""

    async def append_samples(self, samples: Sequence[bytes]) -> None:
        """Add finished requests (opaque to the store) to those to learn from; the latest MAX_SAMPLES are kept.
        Not idempotent."""

    async def samples(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Up to `limit` (id, sample)s in the order of their arrival, from the one after the id `after` on; from
        the oldest if that is empty."""

    async def publish(self, snapshot: bytes, version: int) -> bool:
        """Replace the learned model (opaque to the store) unless one newer than `version` is there; it gets the
        version max(last + 1, clock in microseconds).  Raises ValueError above MAX_SNAPSHOT_BYTES."""

    async def snapshot(self, version: int) -> tuple[int, bytes] | None:
        """The published model's version and bytes, if it is newer than `version`."""

    async def ping(self) -> None:
        """Raises StoreLost unless the store really answers."""

    async def aclose(self) -> None: ...


class Granted(msgspec.Struct, frozen=True):
    """A reservation was made."""

    allowance: Allowance


class Denied(msgspec.Struct, frozen=True):
    """Nothing was reserved."""

    bound: str
    """The one that stands in the way longest: requests, tokens or streams."""
    wait_s: float | None
    """Until there is room; None if that depends on when others end."""
    allowance: Allowance


class Tenants(Protocol):
    """What all gateways know of tenants: the use of their quotas, and their keys' records.

    A quota per minute holds for any 60 s on the store's clock (reckoned in whole seconds: what was used counts for
    up to 61).  A reservation counts as a stream until it is settled or its time is up, and its request and tokens
    count for the minute.  Verbs are atomic for one tenant and raise StoreLost as the Store's do.
    """

    async def reserve(
        self, tenant: str, id: str, tokens: int, quota: Quota, ttl_s: float, former: str = ""
    ) -> Granted | Denied:
        """Take one request, one stream and these tokens (no more than the quota's), all or none.  Not
        idempotent: an id is used once.  If the reservation `former` has not ended, it goes on under this id
        instead, with what it has taken."""

    async def prolong(self, tenant: str, ids: Sequence[str], ttl_s: float) -> None:
        """These are still streams, whatever the store knew of them."""

    async def settle(self, tenant: str, used: Mapping[str, int | None]) -> None:
        """End reservations.  id -> tokens really used: less than was reserved comes back, more counts from now
        on; None: it never ran, and its request comes back too.  What is not known is left as it is."""

    async def keys(self, version: int) -> tuple[int, dict[str, bytes]] | None:
        """The version of the keys' records and all of them by name, unless it is `version`; 0 if the store knows
        of none and never did."""

    async def set_key(self, name: str, record: bytes) -> None:
        """Add a key's record (opaque to the store) or replace it."""

    async def drop_key(self, name: str) -> bool:
        """False if there is none of this name."""

    async def aclose(self) -> None: ...


class Session(Protocol):
    """One driver's hold on one engine, from attach to its end."""

    attached: Attached

    async def send(self, control: Batch | Cancel | Evict | Detach) -> None:
        """Returns once it is on its way, in the order of sending; a Detach, once the engine has it.  If the engine
        refuses one, or takes none, the session ends.  Raises Outranked and BackendLost if it has ended."""

    def events(self) -> AsyncIterator[Event]:
        """Everything after `attached`, to be read by one task.  Ends with Outranked or BackendLost; returns only
        after a Detach or `aclose`."""

    async def aclose(self) -> None:
        """Idempotent.  The engine's rows go on."""


class Backend(Protocol):
    """One replica."""

    @property
    def replica(self) -> str:
        """Its name, the same in every gateway."""

    async def attach(self, attach: Attach) -> Session:
        """Raises Outranked, BackendLost."""

    async def revive(self) -> None:
        """After an attach failed: bring the engine back if it is gone for good.  Returns when it has been tried;
        raises nothing but BackendLost."""

    async def aclose(self) -> None: ...


class Detokenizer(Protocol):
    """Turns one choice's token ids into text as they come."""

    def step(self, token: int) -> str:
        """The text that has become certain: whole characters only, special tokens left out."""

    def flush(self) -> str:
        """What is left when no token follows: an incomplete character shows as U+FFFD."""


class TokenText(NamedTuple):
    """One token by itself."""

    text: str
    """U+FFFD where it has a part of a character."""
    utf8: bytes | None
    """What of several tokens makes their text; None if the tokenizer cannot tell."""


class Tokenizer(Protocol):
    """The model's tokenizer.  What takes long is not done on the event loop's thread."""

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer."""

    @property
    def vocabulary(self) -> int:
        """Ids are 0 .. vocabulary - 1."""

    async def encode(self, texts: Sequence[str], limit_tokens: int) -> list[list[int]]:
        """Raises PromptTooLong if one has as many tokens as `limit_tokens`, or more."""

    async def encode_chat(self, messages: Sequence[Mapping[str, str]], limit_tokens: int) -> list[int]:
        """Raises PromptTooLong, and BadRequest if the model has no chat template or the template refuses the
        turns."""

    def detokenizer(self, before: Sequence[int] = ()) -> Detokenizer:
        """Of a text that goes on after these tokens; only what they leave incomplete is still to be shown."""

    def token_text(self, token: int) -> TokenText:
        """For log probabilities."""


Later = Callable[[], Awaitable[object]]
"""What could not be done at once: to be called, and awaited."""
Take = Callable[[list[Delta]], Later | None]
"""Gets news.  What it leaves for later is to be done before it gets more."""


class Call(Protocol):
    """One API call in flight: what the server reads its answer from."""

    @property
    def id(self) -> str: ...

    @property
    def request(self) -> Request:
        """Its prompts and messages may be gone."""

    @property
    def created(self) -> int:
        """When the answer was begun, in seconds since 1970."""

    @property
    def prompt_tokens(self) -> list[int]:
        """By prompt."""

    @property
    def prompt_texts(self) -> list[str]:
        """By prompt; empty unless the request asked for `echo`."""

    @property
    def service_class(self) -> ServiceClass:
        """The one it runs in."""

    @property
    def allowance(self) -> Allowance:
        """What its tenant had left when it came in."""

    async def read(self, take: Take) -> None:
        """Give `take` all that is new, as soon as it comes in and without a turn of the event loop, until every
        choice has finished.  Raises ApiError, and what `take` raises."""

    def nudge(self) -> None:
        """Give `take` nothing, if it waits."""


class Calls(Protocol):
    """The requests of this gateway, for the server."""

    @property
    def models(self) -> list[str]: ...

    @property
    def context_tokens(self) -> int | None:
        """Prompt and answer together; None while no replica is known."""

    def open(self, request: Request, call_id: str, arrival_s: float) -> AbstractAsyncContextManager[Call]:
        """Admit and queue a request; leaving the block frees everything, however it is left.

        `call_id` must be new; `arrival_s` is on the event loop's clock.  Entering raises BadRequest,
        TooManyRequests, Unavailable.
        """

    def resume(self, call_id: str, tenant: Tenant) -> AbstractAsyncContextManager[Call]:
        """Go on with a call, from its beginning; whoever read it is interrupted.

        Entering raises NotFound if the tenant has none such that can go on, OverQuota, Unavailable.
        """

    async def ready(self) -> list[str]:
        """Reasons for not being ready; empty when a request would be served."""
