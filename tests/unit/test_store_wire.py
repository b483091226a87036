"""Keys and bytes, without a server."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StoreLost
from gateway.store import wire
from gateway.store.keys import queue_keys
from tests.store_contract import entry


def hash_tag(key: str) -> str:
    """Redis Cluster's rule: what is between the first { and the first } after it."""
    start = key.index("{")
    return key[start + 1 : key.index("}", start)]


@given(st.text() | st.sampled_from(["}", "{", "a}b", "{}", "%7D", "org/model-7B"]), st.integers(0, 9))
def test_all_keys_of_a_queue_share_one_hash_tag_that_is_its_own(model: str, shard: int) -> None:
    keys = queue_keys(model, shard)
    (tag,) = {hash_tag(key) for key in keys}
    assert tag
    assert keys.heads == f"bs1:{{{tag}}}:heads"
    assert len(set(keys)) == len(keys)
    assert tag != hash_tag(queue_keys(model + "}", shard).heads)
    assert tag != hash_tag(queue_keys(model, shard + 1).heads)


def test_an_ordinary_model_is_readable() -> None:
    assert queue_keys("org/model-7B.v1").heads == "bs1:{org/model-7B.v1/0}:heads"


def test_a_ticket_comes_back_as_it_went() -> None:
    draft = entry("a/0", score=3.5).ticket
    meta = wire.entry_args(entry("a/0"))[8]
    assert isinstance(meta, bytes)
    assert wire.ticket(b"a/0", b"0", b"3.5", meta) == draft
    assert wire.ticket(b"a/1", b"0", b"3.5", meta) is None
    assert wire.ticket(b"a/0", b"1", b"3.5", meta) is None


@given(st.binary() | st.integers(0, 5000).map(lambda depth: b"\x81\xa1x" + b"\x91" * depth))
def test_random_bytes_are_no_ticket(meta: bytes) -> None:
    assert wire.ticket(b"a/0", b"0", b"1", meta) is None


replies = st.recursive(
    st.none() | st.integers() | st.binary(max_size=6),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.binary(max_size=6), children, max_size=3),
)


@pytest.mark.parametrize(
    "parse",
    [
        *(wire.queue, wire.backlog, wire.texts, wire.text_pairs, wire.peeked, wire.claimed),
        *(wire.samples, wire.snapshot, wire.assembly, wire.letters),
    ],
    ids=lambda parse: parse.__name__,
)
@given(reply=replies)
def test_any_reply_is_parsed_or_a_lost_store(parse, reply) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(StoreLost):
        wire.parsed(parse, reply)
