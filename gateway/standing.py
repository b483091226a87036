"""How a replica stands, as its driver tells the other gateways."""

import msgspec

from gateway.policy.batch import Unstarted
from gateway.policy.pace import Pace
from triton_backend.contract import ModelInfo, Telemetry
from triton_backend.memory import Layout


class Standing(msgspec.Struct, frozen=True):
    """A field may be added with a default, never renamed or retyped: gateways of two versions run side by side."""

    model: ModelInfo
    layout: Layout
    telemetry: Telemetry
    pace: Pace
    work_rate: float
    """Predicted engine seconds of work that it does in a second."""
    rows: int
    """In the engine, started or not."""
    has_room: bool
    """Nothing waits for want of room there."""
    tpot_s: float
    """The tightest target of its rows; infinite without any."""
    unstarted: list[Unstarted]
    """Rows whose prompts are still to be run."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Standing)


def encode(standing: Standing) -> bytes:
    return _encoder.encode(standing)


def decode(raw: bytes) -> Standing | None:
    """None if it is none, or of a version that says too little."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
