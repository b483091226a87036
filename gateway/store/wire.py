"""Tickets and replies, to and from bytes.

What comes back is hostile until parsed.  A reply that is not what a verb returns is a StoreLost; a ticket
that does not decode is told apart from the others, so that it spoils nobody's batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from gateway.errors import StoreLost
from gateway.ports import MAX_SNAPSHOT_BYTES, Adopted, Assembly, Entry, LogWrite, Peer, Record, Seat, Written
from gateway.request import Backlog, Head, Queue, ServiceClass, Slot, Ticket

T = TypeVar("T")
Arg = str | bytes | int | float

MAX_TIME_S = 1e11
"""Some thousand years."""

_WRITTEN = {written.value.encode(): written for written in Written}

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ticket)


def microseconds(seconds: float) -> int:
    """Sums of integers come back to zero exactly."""
    return round(seconds * 1e6)


def check_times(entries: Iterable[Entry]) -> None:
    """One infinity in a shared sum would be everybody's, and a script stops halfway at what is no integer."""
    for entry in entries:
        ticket = entry.ticket
        times = (ticket.score, ticket.slack_s, ticket.cost_s, ticket.seconds)
        if not all(abs(time) < MAX_TIME_S for time in times):
            raise ValueError("a ticket's times must be finite and sane")


def check_snapshot(snapshot: bytes) -> None:
    if len(snapshot) > MAX_SNAPSHOT_BYTES:
        raise ValueError(f"a snapshot has at most {MAX_SNAPSHOT_BYTES} bytes")


def entry_args(entry: Entry) -> tuple[Arg, ...]:
    """The arguments of one ticket, in the order of `entry` in common.lua."""
    ticket = entry.ticket
    return (
        ticket.id,
        ticket.attempt,
        ticket.origin,
        ticket.bin,
        ticket.service_class.value,
        ticket.prompt_tokens,
        ticket.size_bytes,
        microseconds(ticket.seconds),
        _encoder.encode(ticket),
        entry.payload,
        ticket.score,
        ticket.tenant,
        ticket.slack_s,
        ticket.cost_s,
    )


def record_args(record: Record) -> tuple[Arg, ...]:
    """In the order of keep.lua."""
    return record.call, record.epoch, record.owner, microseconds(record.age_s), record.content, record.log


def log_args(writes: Sequence[LogWrite]) -> tuple[bytes, bytes]:
    """In the order of log.lua."""
    heads = [arg for one in writes for arg in (one.call, one.epoch, one.offset, len(one.data), one.prolongs)]
    return _encoder.encode(heads), b"".join([one.data for one in writes])


def flat(pairs: Iterable[tuple[Arg, Arg]]) -> list[Arg]:
    return [arg for pair in pairs for arg in pair]


def parsed(parse: Callable[[Any], T], reply: Any) -> T:
    try:
        return parse(reply)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreLost(f"the store answered nonsense ({type(error).__name__})") from error


def text(value: bytes) -> str:
    return str(value, "utf-8")


def texts(reply: Sequence[bytes]) -> list[str]:
    return [text(value) for value in reply]


def text_pairs(reply: Sequence[Sequence[bytes]]) -> list[tuple[str, str]]:
    return [(text(first), text(second)) for first, second in reply]


def ticket(id: bytes, attempt: bytes, score: bytes, meta: bytes) -> Ticket | None:
    """The ticket with the score the store gave it; None if these bytes are no such ticket."""
    try:
        decoded = _decoder.decode(meta)
        if (decoded.id.encode(), b"%d" % decoded.attempt) != (id, attempt):
            return None
        return msgspec.structs.replace(decoded, score=float(score))
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


def peeked(reply: Sequence[Sequence[bytes]]) -> list[tuple[bytes, Ticket | None]]:
    return [(id, ticket(id, attempt, score, meta)) for id, attempt, score, meta in reply]


def claimed(reply: Sequence[Sequence[bytes]]) -> list[tuple[bytes, Entry | None]]:
    return [(id, _entry(ticket(id, *rest), payload)) for id, *rest, payload in reply]


def _entry(ticket: Ticket | None, payload: bytes | None) -> Entry | None:
    return None if ticket is None or payload is None else Entry(ticket, payload)


def started(count: int) -> Callable[[Any], list[float] | None]:
    def parse(reply: Any) -> list[float] | None:
        if reply == 0:
            return None
        if len(reply) != count:
            raise ValueError(f"{len(reply)} scores for {count} tickets")
        return [float(score) for score in reply]

    return parse


def queue(reply: Sequence[Any]) -> tuple[Queue, list[tuple[bytes, Ticket | None]]]:
    """The queue but for the tickets shown, and those as `peeked`."""
    now, heads, served, table, totals, shown = reply
    version, *bounds = (int(part) for part in (table or b"0 0").split())
    tickets, tokens, size = (int(total or 0) for total in totals)
    queue = Queue(
        now_s=float(now),
        heads=[_head(name, value) for name, value in pairs(heads)],
        served={ServiceClass(text(name)): float(figure) for name, figure in pairs(served)},
        bounds=tuple(bounds),
        bounds_version=version,
        tickets=tickets,
        tokens=tokens,
        bytes=size,
    )
    return queue, peeked(shown)


def pairs(reply: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(reply[::2], reply[1::2], strict=True)


def _head(name: bytes, value: bytes) -> Head:
    bin, _, service_class = text(name).partition(":")
    count, score, id = value.split(b" ", 2)
    return Head(int(bin), ServiceClass(service_class), text(id), float(score), int(count))


def backlog(reply: Sequence[Any]) -> Backlog:
    now, tag, sums_by_name = reply
    sums: dict[tuple[ServiceClass, int], dict[str, int]] = {}
    for name, value in pairs(sums_by_name):
        if b":" not in name:
            continue  # a sum over all of the queue
        service_class, slot, unit = text(name).split(":")
        sums.setdefault((ServiceClass(service_class), int(slot)), {})[unit] = int(value)
    slots = {key: Slot(sum.get("tokens", 0), sum.get("us", 0) / 1e6) for key, sum in sums.items()}
    return Backlog(float(now), max(float(now), float(tag or 0)), slots)


def assembly(reply: Sequence[Sequence[bytes]]) -> Assembly:
    gateways, seats = reply
    peers = zip(gateways[::3], gateways[1::3], gateways[2::3], strict=True)
    replicas = zip(seats[::3], seats[1::3], seats[2::3], strict=True)
    return Assembly(
        {text(name): Peer(drives == b"1", card) for name, drives, card in peers},
        {text(replica): Seat(text(gateway), standing) for replica, gateway, standing in replicas},
    )


def letters(reply: Sequence[tuple[bytes, Sequence[Any]]]) -> list[tuple[str, bytes]]:
    return [(text(id), fields.get(b"letter", b"")) for _, entries in reply for id, fields in entries]


def written(count: int) -> Callable[[Sequence[bytes]], list[Written]]:
    def parse(reply: Sequence[bytes]) -> list[Written]:
        if len(reply) != count:
            raise ValueError(f"{len(reply)} answers to {count} writes")
        return [_WRITTEN[value] for value in reply]

    return parse


def adopted(reply: Sequence[Any] | None) -> Adopted | None:
    if reply is None:
        return None
    epoch, former_epoch, age_s, content, log = reply
    if not (isinstance(content, bytes) and isinstance(log, bytes)):
        raise TypeError("a record is bytes")
    return Adopted(int(epoch), int(former_epoch), max(0.0, float(age_s)), content, log)


def samples(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[tuple[str, bytes]]:
    return [(text(id), dict(pairs(fields)).get(b"sample", b"")) for id, fields in reply]


def snapshot(reply: Sequence[bytes] | None) -> tuple[int, bytes] | None:
    if reply is None:
        return None
    version, data = reply
    if not isinstance(data, bytes):
        raise TypeError("a snapshot is bytes")
    return int(version), data
