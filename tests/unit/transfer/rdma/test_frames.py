"""Control frames: what is said is read as it was meant; anything else is refused, never an accident."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.errors import Reason
from transfer.grants import DESCRIPTOR_BYTES_MAX
from transfer.rdma.frames import (
    HEAD_BYTES,
    LANES_MAX,
    RAILS_MAX,
    VERSION,
    Ended,
    FrameInvalid,
    Hello,
    Join,
    Joined,
    Kind,
    Message,
    Present,
    RailOffer,
    Shown,
    parse_body,
    parse_head,
    to_frame,
)

u16, u24, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFF_FFFF), st.integers(0, 0xFFFF_FFFF)
gids, mtus, reads = st.binary(min_size=16, max_size=16), st.integers(1, 5), st.integers(1, 255)
rails = st.integers(0, RAILS_MAX - 1)
hellos = st.builds(
    Hello,
    gids,
    st.lists(st.builds(RailOffer, gids, u16, mtus, reads, st.booleans(), st.booleans()), max_size=RAILS_MAX).map(tuple),
)
joins = st.builds(Join, st.integers(0, RAILS_MAX * LANES_MAX - 1), rails, rails, u24, u24, mtus, reads, gids, u16)
joined = st.builds(Joined, u24, u24, mtus, reads) | st.builds(Joined, why=st.text("abc é", min_size=1, max_size=90))
shown = st.integers(1, 4).flatmap(
    lambda devices: st.builds(
        Shown,
        st.just(Reason.LANDED),
        st.integers(0, (1 << 63) - 1),
        st.lists(st.tuples(*[u32] * devices), min_size=1, max_size=6).map(tuple),
    )
) | st.builds(Shown, st.sampled_from([Reason.REVOKED, Reason.EXPIRED, Reason.LATE]))
ended = st.builds(Ended, st.integers(0, 1 << 24), u32, st.sampled_from([Reason.REVOKED, Reason.EXPIRED]))
messages: st.SearchStrategy[Message] = st.one_of(
    hellos, joins, joined, shown, ended, st.builds(Present, st.binary(max_size=300))
)


@given(messages, u32)
def test_what_is_said_is_read(message: Message, request: int) -> None:
    frame = to_frame(message, request)
    version, kind, read_request, size = parse_head(frame[:HEAD_BYTES])
    assert (version, read_request, size) == (VERSION, request, len(frame) - HEAD_BYTES)
    assert parse_body(kind, frame[HEAD_BYTES:]) == message


@given(messages, st.data())
def test_bodies_that_are_cut_or_longer_are_refused(message: Message, data: st.DataObject) -> None:
    frame = to_frame(message)
    kind = parse_head(frame[:HEAD_BYTES]).kind
    if kind in (Kind.PRESENT, Kind.JOINED):
        return  # of any length, and with a text that ends the body
    body = frame[HEAD_BYTES:]
    for changed in (body[: data.draw(st.integers(0, len(body) - 1))], body + b"\0"):
        with pytest.raises(FrameInvalid):
            parse_body(kind, changed)


@given(st.sampled_from(Kind), st.binary(max_size=400))
def test_any_bytes_are_a_message_or_refused(kind: Kind, body: bytes) -> None:
    try:
        message = parse_body(kind, body)
    except FrameInvalid:
        return
    assert parse_head(to_frame(message)[:HEAD_BYTES]).kind is kind


@given(messages, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=500)
def test_a_frame_with_a_few_bytes_changed_is_a_message_of_one_form_or_refused(
    message: Message, changes: list[tuple[int, int]]
) -> None:
    """Near to what is meant, where a parser that trusts too much would go wrong."""
    frame = bytearray(to_frame(message, 7))
    for at, change in changes:
        frame[at % len(frame)] ^= change
    try:
        head = parse_head(bytes(frame[:HEAD_BYTES]))
        read = parse_body(head.kind, bytes(frame[HEAD_BYTES:][: head.size]))
    except FrameInvalid:
        return
    if isinstance(read, Joined) and read.why:
        return  # what a refusal holds beside its reason is not looked at
    if len(frame) == HEAD_BYTES + head.size:
        assert to_frame(read, head.request, head.version) == frame


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES))
def test_any_head_is_bounded_or_refused(head: bytes) -> None:
    try:
        size = parse_head(head).size
    except FrameInvalid:
        return
    assert size <= 4 << 20


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (struct.pack("<4sBBHII", b"KVRX", 1, 1, 0, 0, 0), "not a frame"),
        (struct.pack("<4sBBHII", b"KVRC", 3, 1, 0, 0, 0), "version 3"),
        (struct.pack("<4sBBHII", b"KVRC", 0, 1, 0, 0, 0), "version 0"),
        (struct.pack("<4sBBHII", b"KVRC", 1, 9, 0, 0, 0), "kind 9"),
        (struct.pack("<4sBBHII", b"KVRC", 1, 1, 7, 0, 0), "not a frame"),
        (struct.pack("<4sBBHII", b"KVRC", 1, Kind.PRESENT, 0, 0, DESCRIPTOR_BYTES_MAX + 1), "at most"),
    ],
)
def test_heads_that_are_refused(head: bytes, why: str) -> None:
    with pytest.raises(FrameInvalid, match=why):
        parse_head(head)


def test_numbers_out_of_range_are_refused() -> None:
    offer = RailOffer(bytes(16), 0, 6, 1, True, True)
    for message in (
        Hello(bytes(16), (offer,)),
        Join(RAILS_MAX * LANES_MAX, 0, 0, 1, 1, 1, 1, bytes(16), 0),
        Join(0, RAILS_MAX, 0, 1, 1, 1, 1, bytes(16), 0),
        Join(0, 0, 0, 1, 1 << 24, 1, 1, bytes(16), 0),
        Joined(1, 1, 0, 1),
        Ended(1, 1, Reason.LANDED),
        Shown(Reason.LANDED, 1 << 63, ((1,),)),
    ):
        frame = to_frame(message)
        with pytest.raises(FrameInvalid):
            parse_body(parse_head(frame[:HEAD_BYTES]).kind, frame[HEAD_BYTES:])


def test_keys_are_as_many_as_was_said() -> None:
    frame = to_frame(Shown(Reason.LANDED, 1 << 44, ((1, 2), (3, 4))))
    for body in (frame[HEAD_BYTES:-8], frame[HEAD_BYTES:] + bytes(8)):  # a whole range less, or more
        with pytest.raises(FrameInvalid, match="counts"):
            parse_body(Kind.SHOWN, body)
