"""What a driver and an engine say to each other, and nothing else.

One `attach` request opens a session; every event of the engine leaves through its response sender.  All other
controls are short requests of their own.  One that is refused, because another epoch holds the engine, is answered
with an `Ack` that says so; that one was taken is told by the `seq` of later steps, and so is what became of it.

Messages are MessagePack maps.  A field may be added with a default (readers skip what they do not know),
never renamed or retyped; `CONTRACT_VERSION` rises with each addition, and both sides speak their own version and
the one before: the lower of the two, so that either may be replaced first.  Token ids, indexes and counts are
plain integers, times are seconds, sizes are bytes.
"""

from enum import StrEnum

import msgspec

from triton_backend.memory import Layout

CONTRACT_VERSION = 3
MAX_LOGPROBS = 20
"""Alternatives that a row may ask for at a token, at most."""


class ContractError(Exception):
    """Bytes that are no message of this contract."""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a row draws its tokens.  `temperature` 0: greedy; `top_k` 0, `top_p` 1: off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None
    """None: not asked for.  0..20: the chosen token's log probability and that many alternatives."""


class NewRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One ticket's attempt, to be run.  `row` is unique in the engine's life; the driver numbers rows."""

    row: int
    ticket: str
    attempt: int
    origin: str
    prompt: list[int]
    """Everything to prefill: the prompt, then the tokens that earlier attempts delivered."""
    index: int
    """Index of the next token to draw, counted from the ticket's first: so many of `prompt` were drawn."""
    max_tokens: int
    """How many more to draw, at least 1."""
    min_tokens: int = 0
    """While a token's index is below this, no id of `stop_ids` is drawn."""
    stop_ids: list[int] = []
    """Drawing one of these ends the row with `stop`; the token itself is still reported."""
    sampling: Sampling = Sampling()
    rank: float = 0.0
    """The lowest is prefilled first, the highest evicted first."""
    tpot_s: float = 0.0
    """Target for the mean time per further token; 0: none.  Since version 2."""


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    epoch: int
    driver: str
    version: int = CONTRACT_VERSION


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Rows of similar prompt length, prefilled together."""

    epoch: int
    seq: int
    rows: list[NewRow]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Free these rows.  Unknown rows are ignored: they ended meanwhile."""

    epoch: int
    seq: int
    rows: list[int]


class Evict(msgspec.Struct, frozen=True, tag="evict"):
    """Like Cancel, but reported as `evicted`: the origin will put the ticket back."""

    epoch: int
    seq: int
    rows: list[int]


class Detach(msgspec.Struct, frozen=True, tag="detach"):
    """End the session; rows go on and wait for the next one."""

    epoch: int
    seq: int


Control = Attach | Batch | Cancel | Evict | Detach


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to a control other than Attach.  `epoch` is the one that holds the engine.  Before version 3 every
    control has one."""

    seq: int
    epoch: int
    error: str | None = None


class End(StrEnum):
    """Why a row left the engine."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    EVICTED = "evicted"
    """Memory ran short, or the driver asked: to be put back."""
    REFUSED = "refused"
    """Did not fit when it arrived (telemetry tells the free bytes): to be put back."""
    FAILED = "failed"
    """The engine could not run it: `detail` says why."""


class Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    row: int
    reason: End
    detail: str = ""


class Telemetry(msgspec.Struct, frozen=True):
    """The engine's figures at the end of a step.  Memory the engine may use for KV: `pool_capacity_bytes`
    (taken from the device already) plus `pool_growable_bytes`."""

    pool_capacity_bytes: int
    pool_used_bytes: int
    pool_growable_bytes: int
    device_free_bytes: int
    device_total_bytes: int
    process_bytes: int
    running: int
    """Rows in the decode pool."""
    waiting: int
    """Rows accepted whose prefill is not finished."""
    step_s: float
    """Wall time of the last step; 0 when idle."""
    prefill_tokens_per_s: float
    """Smoothed; 0 until measured."""
    decode_tokens_per_s: float
    """Smoothed, over all rows; 0 until measured."""
    out_of_memory_total: int
    decode_rows: int = 0
    """Rows of the last step if it drew a further token for each; 0 after any other.  Since version 2."""


class ModelInfo(msgspec.Struct, frozen=True):
    name: str
    context_tokens: int
    vocabulary: int
    dtype: str
    device: str
    chunk_tokens: int = 512
    """Of prompts, in one step at most."""


Alternatives = list[tuple[int, float]]
"""(token id, log probability), best first."""


class LiveRow(msgspec.Struct, frozen=True):
    """A row in a snapshot, with all it generated in this attempt, delivered or not."""

    row: int
    ticket: str
    attempt: int
    origin: str
    prompt_tokens: int
    index: int
    """Index of the first of `tokens`."""
    max_tokens: int
    """How many may still be drawn."""
    tokens: list[int]
    logprobs: list[float]
    """Parallel to `tokens`; empty if not asked for."""
    alternatives: list[Alternatives]
    """Parallel to `tokens`; empty if not asked for."""
    ended: End | None
    """Set if the row finished while nobody was attached."""
    tpot_s: float = 0.0
    """As in NewRow.  Since version 2."""


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """First event of a session."""

    epoch: int
    version: int
    model: ModelInfo
    layout: Layout
    rows: list[LiveRow]
    telemetry: Telemetry


class Step(msgspec.Struct, frozen=True, tag="step", omit_defaults=True):
    """One engine step for all rows, or a sign of life when idle (then only telemetry is set).

    `rows`, `indexes` and `tokens` are parallel.  If any row asked for log probabilities, `logprobs` and
    `alternatives` are parallel to them too (0.0 and [] for rows that did not ask); else both are empty.
    A row in `ended` has no later event.
    """

    seq: int
    """The highest control sequence number taken from the inbox so far."""
    telemetry: Telemetry
    rows: list[int] = []
    indexes: list[int] = []
    tokens: list[int] = []
    logprobs: list[float] = []
    alternatives: list[Alternatives] = []
    ended: list[Ended] = []


class Superseded(msgspec.Struct, frozen=True, tag="superseded"):
    """Last event of a session that a higher epoch took over, or only answer to an attach whose epoch is not
    above `epoch`."""

    epoch: int


class AttachRefused(msgspec.Struct, frozen=True, tag="refused"):
    """Only answer to an attach of a contract version that this engine does not speak."""

    version: int
    """The engine's."""
    error: str


Event = Attached | Step | Superseded | AttachRefused

_encoder = msgspec.msgpack.Encoder()
_control_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_ack_decoder = msgspec.msgpack.Decoder(Ack)


def is_acknowledged(control: Control, version: int) -> bool:
    """Whether a control that is taken is answered: a Detach, as no step will tell of it, and one of epoch 0, which
    only asks whether the engine lives."""
    return version < 3 or isinstance(control, Detach) or not control.epoch


def encode(message: Control | Event | Ack) -> bytes:
    return _encoder.encode(message)


def decode_control(raw: bytes) -> Control:
    """Raises ContractError."""
    try:
        return _control_decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ContractError(str(error)) from error


def decode_event(raw: bytes) -> Event:
    """Raises ContractError."""
    try:
        return _event_decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ContractError(str(error)) from error


def decode_ack(raw: bytes) -> Ack:
    """Raises ContractError."""
    try:
        return _ack_decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ContractError(str(error)) from error
