"""What nodes tell each other of blocks: whatever is told arrives as it was, whatever else comes is refused by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory.messages import (
    Announce,
    Digest,
    DigestAnswer,
    Locate,
    LocateAnswer,
    Message,
    Rows,
    Status,
    Taken,
)
from kvstore.wire import claims, peers, store

NODE, INCARNATION = b"n" * 16, (1 << 63) + 5
NS = b"s" * 32
WORD = st.integers(0, (1 << 64) - 1)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    shards = draw(st.lists(WORD, max_size=5))
    keys = np.frombuffer(draw(st.binary(min_size=16 * len(shards), max_size=16 * len(shards))), np.uint8)
    tiers = np.array([draw(st.integers(0, 2)) for _ in shards], np.uint8)
    return Rows(draw(st.binary(min_size=32, max_size=32)), keys.reshape(-1, 16), np.array(shards, np.uint64), tiers)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Announce,
        st.just(NODE),
        st.just(INCARNATION),
        WORD,
        st.lists(rows(), max_size=3).map(tuple),
        st.lists(st.binary(min_size=32, max_size=32), max_size=2).map(tuple),
        WORD,
        WORD,
    ),
    st.builds(
        Digest,
        st.just(NODE),
        st.just(INCARNATION),
        WORD,
        st.lists(WORD, min_size=64, max_size=64).map(lambda words: np.array(words, np.uint64)),
        WORD,
    ),
    st.builds(Locate, st.just(NS), rows().map(lambda each: each.keys), st.integers(0, (1 << 32) - 1)),
)


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in dataclasses.fields(one))
    return bool(one == other)


@given(MESSAGES)
def test_what_is_told_arrives(message: Message) -> None:
    body = claims.message_bytes(message)
    assert same(claims.message_of(claims.method_of(message), body, NODE, INCARNATION), message)


LOCATED = LocateAnswer(
    Status.TAKEN,
    (b"a" * 16, b"b" * 16),
    np.array([1, 0, 2], np.uint8),
    np.array([1, 0, 1], np.uint16),
    np.array([1, 1 << 63, 3], np.uint64),
    np.array([1, 2, 1], np.uint8),
    1 << 63,
)
LOCATE = Locate(NS, np.zeros((3, 16), np.uint8))
ANNOUNCE = Announce(NODE, INCARNATION, 1)
DIGEST = Digest(NODE, INCARNATION, 1, np.zeros(64, np.uint64), 0)


def test_answers_arrive() -> None:
    for message, answer in (
        (ANNOUNCE, Taken(Status.FULL)),
        (DIGEST, DigestAnswer(Status.RESYNC, 1 << 63)),
        (LOCATE, LOCATED),
    ):
        assert same(claims.answer_of(message, claims.answer_bytes(answer)), answer)


@pytest.mark.parametrize(
    ("field", "wrong", "why"),
    [
        ("counts", b"\1\0", "counts: 2 bytes, must be 3"),
        ("holders", b"\0\0", "holders: 2 bytes, must be 6"),
        ("holders", b"\0\0\2\0\0\0", "holders: 2, of 2 nodes"),
        ("shards", b"", "shards: 0 bytes, must be 24"),
        ("tiers", b"\1\1\3", "tiers: 3, must be one of"),
        ("nodes", [b"a" * 16, b"b"], "nodes: 1 bytes, must be 16"),
        ("status", 77, "status: 77 is none"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(field: str, wrong: object, why: str) -> None:
    told = peers.PeerLocateResponse.FromString(claims.answer_bytes(LOCATED))
    told.ClearField(field)  # type: ignore[arg-type]
    told.MergeFrom(peers.PeerLocateResponse(**{field: wrong}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=why):
        claims.answer_of(LOCATE, told.SerializeToString())


@given(st.binary(max_size=200), st.sampled_from(sorted(claims.METHODS)))
def test_any_bytes_are_a_message_or_a_value_error(raw: bytes, method: store.Method.ValueType) -> None:
    try:
        claims.message_of(method, raw, NODE, INCARNATION)
    except ValueError as error:
        assert str(error).partition(":")[0]
