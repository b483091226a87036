"""What a gateway has learned of a replica stays when its driver's session does not."""

import msgspec
import pytest

from gateway.fleet import Fleet, Replica
from gateway.policy.pace import Pace
from tests.unit.test_contract import MODEL, TELEMETRY
from triton_backend.contract import Attached, Telemetry
from triton_backend.memory import Paged


def says(decode_rows: int = 0, step_s: float = 0.0, kv_bytes: int = 1000, errors: int = 0) -> Telemetry:
    return msgspec.structs.replace(
        TELEMETRY,
        decode_rows=decode_rows,
        step_s=step_s,
        pool_capacity_bytes=kv_bytes,
        pool_growable_bytes=0,
        prefill_tokens_per_s=100.0,
        out_of_memory_total=errors,
    )


def attached(telemetry: Telemetry, block: int = 16) -> Attached:
    return Attached(1, 1, MODEL, Paged(block, 10), [], telemetry)


def learned(fleet: Fleet) -> Replica:
    """A replica that was driven for a while."""
    replica = fleet.joined("r", attached(says(kv_bytes=5000)))
    for number in range(100):
        rows = 1 + number % 16
        replica.heard(says(rows, 0.010 + 0.002 * rows), 0.1 * number)
    replica.heard(says(errors=1), 10.0)
    replica.drain.rate = 3.0
    return replica


def test_what_was_learned_of_a_replica_stays_when_it_is_attached_again() -> None:
    fleet = Fleet(0.8)
    before = learned(fleet)
    tokens, factor = before.longest_row_tokens(0.8), before.safety_factor
    assert factor == pytest.approx(0.6)
    replica = fleet.joined("r", attached(says(errors=4)))
    assert replica is fleet.replicas["r"]
    assert (fleet.work_rate, replica.safety_factor) == (3.0, factor)
    assert replica.pace.fixed_s == pytest.approx(0.010)
    assert replica.pace.per_row_s == pytest.approx(0.002)
    assert replica.longest_row_tokens(0.8) == tokens
    replica.heard(says(errors=4), 12.0)
    assert replica.safety_factor == pytest.approx(0.62), "what went wrong under another driver is not this one's"


def test_work_that_was_claimed_between_two_sessions_is_not_missed_in_the_rate() -> None:
    fleet = Fleet(0.8)
    replica = learned(fleet)
    replica.drain.note([], True, 0.0, 10.0)
    fleet.joined("r", attached(says()))
    replica.drain.note([], True, 0.0, 100.0)
    assert replica.drain.rate == 3.0


def test_another_model_or_layout_is_another_replica() -> None:
    fleet = Fleet(0.8)
    learned(fleet)
    replica = fleet.joined("r", attached(says(), block=32))
    assert (fleet.work_rate, replica.safety_factor, replica.pace) == (1.0, 0.8, Pace(0.0, 0.0, 100.0))


def test_a_pace_that_another_driver_told_goes_on() -> None:
    here, there = Fleet(0.8), Fleet(0.8)
    here.told("r", learned(there).standing)
    replica = here.joined("r", attached(says()))
    replica.heard(says(), 20.0)
    assert here.work_rate == 3.0
    assert replica.pace.fixed_s == pytest.approx(0.010)
    assert replica.pace.per_row_s == pytest.approx(0.002)
    for number in range(200):
        replica.heard(says(1 + number % 16, 0.050), 20.0 + number)
    assert replica.pace.decode_s(8) == pytest.approx(0.050, rel=0.05), "until it is measured here"
