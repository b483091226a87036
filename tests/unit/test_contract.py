"""The wire between driver and engine: round trips, hostile bytes, and the names that may never change."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_backend import contract
from triton_backend.contract import (
    Ack,
    Attach,
    Attached,
    AttachRefused,
    Batch,
    Cancel,
    ContractError,
    Detach,
    End,
    Ended,
    Evict,
    LiveRow,
    ModelInfo,
    NewRow,
    Sampling,
    Step,
    Superseded,
    Telemetry,
)
from triton_backend.memory import Grouped, Paged

TELEMETRY = Telemetry(1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 9)
NEW_ROW = NewRow(
    row=7,
    ticket="call/0",
    attempt=2,
    origin="gateway-1",
    prompt=[5, 0, 9],
    index=1,
    max_tokens=4,
    min_tokens=2,
    stop_ids=[3],
    sampling=Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=2**64 - 1, logprobs=3),
    rank=1.5,
)
LIVE_ROW = LiveRow(7, "call/0", 2, "gateway-1", 3, 1, 3, [8], [-0.5], [[(8, -0.5), (2, -1.0)]], End.STOP)
MODEL = ModelInfo("m", 2048, 96, "float32", "cpu")

CONTROLS = [
    Attach(9, "gateway-1"),
    Batch(9, 1, [NEW_ROW, NewRow(8, "call/1", 0, "g", [1], 0, 1)]),
    Cancel(9, 2, [7, 8]),
    Evict(9, 3, [7]),
    Detach(9, 4),
]
EVENTS = [
    Attached(9, 1, MODEL, Grouped((64, 96), 10), [LIVE_ROW], TELEMETRY),
    Attached(9, 1, MODEL, Paged(16, 10), [], TELEMETRY),
    Step(1, TELEMETRY),
    Step(2, TELEMETRY, [7], [1], [8], [-0.5], [[(8, -0.5)]], [Ended(7, End.FAILED, "why")]),
    Superseded(10),
    AttachRefused(1, "why"),
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)
def test_a_control_survives_the_wire(control: contract.Control) -> None:
    assert contract.decode_control(contract.encode(control)) == control


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_the_wire(event: contract.Event) -> None:
    assert contract.decode_event(contract.encode(event)) == event


@pytest.mark.parametrize("ack", [Ack(1, 2), Ack(1, 2, "no")])
def test_an_ack_survives_the_wire(ack: Ack) -> None:
    assert contract.decode_ack(contract.encode(ack)) == ack


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)
def test_what_is_taken_is_answered_only_where_no_step_tells_of_it(control: contract.Control) -> None:
    assert contract.is_acknowledged(control, 2)
    assert contract.is_acknowledged(control, 3) == isinstance(control, Detach)
    assert contract.is_acknowledged(Cancel(0, -1, []), 3), "a probe"


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_message_or_a_contract_error(raw: bytes) -> None:
    for decode in (contract.decode_control, contract.decode_event, contract.decode_ack):
        with suppress(ContractError):
            decode(raw)


@given(st.sampled_from([*CONTROLS, *EVENTS]), st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_damaged_messages_are_messages_or_contract_errors(
    message: contract.Control | contract.Event, at: int, damage: bytes
) -> None:
    raw = contract.encode(message)
    at %= len(raw)
    test_bytes_of_any_kind_are_a_message_or_a_contract_error.hypothesis.inner_test(  # type: ignore[attr-defined]
        raw[:at] + damage + raw[at + 1 :]
    )


def test_deep_nesting_is_a_contract_error() -> None:
    with pytest.raises(ContractError):
        contract.decode_control(b"\x91" * 100_000)


def test_fields_of_a_later_version_are_skipped() -> None:
    later = msgspec.msgpack.encode({"type": "superseded", "epoch": 3, "added": [1, {"x": None}]})
    assert contract.decode_event(later) == Superseded(3)


NAMES = {
    NewRow: "row ticket attempt origin prompt index max_tokens min_tokens stop_ids sampling rank",
    Sampling: "temperature top_p top_k seed logprobs",
    Attach: "epoch driver version",
    Batch: "epoch seq rows",
    Cancel: "epoch seq rows",
    Evict: "epoch seq rows",
    Detach: "epoch seq",
    Ack: "seq epoch error",
    Ended: "row reason detail",
    LiveRow: "row ticket attempt origin prompt_tokens index max_tokens tokens logprobs alternatives ended",
    ModelInfo: "name context_tokens vocabulary dtype device",
    Attached: "epoch version model layout rows telemetry",
    Step: "seq telemetry rows indexes tokens logprobs alternatives ended",
    Superseded: "epoch",
}


@pytest.mark.parametrize("message", NAMES, ids=lambda message: message.__name__)
def test_field_names_are_only_ever_added_to(message: type[msgspec.Struct]) -> None:
    names = message.__struct_encode_fields__
    assert " ".join(names[: len(NAMES[message].split())]) == NAMES[message]
