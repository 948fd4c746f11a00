"""Blocks in messages and back: whatever the cut, wrong bytes never count as arrived."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import native
from kvstore.client import rpc
from kvstore.client.buffers import Extents, Places, Registry, Wanted, places
from kvstore.client.space import Known, Space
from kvstore.client.steps import Put, PutOutcome, Status, WireHint
from kvstore.layout import KVLayout
from kvstore.wire import errors, store

PARTS = [4096, 100, 5000]
BLOCK = sum(PARTS)


def payload(blocks: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(blocks).integers(0, 256, blocks * BLOCK, dtype=np.uint8)


def messages(data: bytes, cut: int) -> Iterator[store.GetResponse]:
    for i in range(len(data) // BLOCK):
        block = data[i * BLOCK : (i + 1) * BLOCK]
        sums = native.part_checksums(block, PARTS).astype("<u8").tobytes()
        yield store.GetResponse(block=store.GetBlock(index=i, tier=store.TIER_FILE, checksums=sums))
        for at in range(0, BLOCK, cut):
            yield store.GetResponse(data=store.GetData(payload=block[at : at + cut]))
    yield store.GetResponse(end=store.GetEnd(blocks=len(data) // BLOCK))


def into(memory: object, blocks: int) -> Places:
    return places(memory, Wanted("into", blocks, BLOCK, writing=True), Registry())


def landed(told: Iterator[store.GetResponse], where: Places, *, verify: bool = True) -> rpc.Landing:
    landing = rpc.Landing(where, PARTS, verify=verify)
    for message in told:
        landing.take(message)
        if landing.ended:
            break
    return landing


@given(st.integers(0, 4), st.integers(1, BLOCK + 10))
def test_blocks_arrive_whatever_the_cut(blocks: int, cut: int) -> None:
    data, memory = payload(blocks), np.zeros(blocks * BLOCK, np.uint8)
    told = landed(messages(data.tobytes(), cut), into(memory, blocks)).told()
    assert (told.blocks, told.blocks_corrupt, told.bytes) == (blocks, 0, blocks * BLOCK)
    assert told.tiers == bytes([2]) * blocks and np.array_equal(memory, data)


def test_blocks_arrive_scattered() -> None:
    data, buffers = payload(3), [np.zeros((5, BLOCK // 4), np.uint8) for _ in range(4)]
    extents = Extents.strided(buffers, np.array([4, 0, 2]) * (BLOCK // 4), BLOCK // 4)
    assert landed(messages(data.tobytes(), 999), into(extents, 3)).blocks == 3
    arrived = np.stack([np.stack([buffers[layer][row] for layer in range(4)]) for row in (4, 0, 2)])
    assert np.array_equal(arrived.reshape(-1), data)


def test_blocks_cut_each_in_its_own_way_arrive_and_leave() -> None:
    """Where a block's pieces lie says nothing of how long another block's are."""
    data, memory = payload(3), np.zeros(3 * BLOCK, np.uint8)
    cuts = [(100, BLOCK - 100), (BLOCK - 7, 7), (4096, BLOCK - 4096)]
    rows = [[(0, i * BLOCK, first), (0, i * BLOCK + first, second)] for i, (first, second) in enumerate(cuts)]
    table = np.array(rows, dtype=np.int64)
    assert landed(messages(data.tobytes(), 999), into(Extents([memory], table), 3)).blocks == 3
    assert np.array_equal(memory, data)
    source = places(Extents([data], table), Wanted("source", 3, BLOCK, writing=False), Registry())
    assert [b"".join(rpc.places_of(source, i)) for i in range(3)] == [row.tobytes() for row in data.reshape(3, BLOCK)]


def test_a_put_goes_on_behind_what_is_held() -> None:
    """Key before the first, position, metas, checksums and bytes are all of the blocks that travel."""
    layout = KVLayout.uniform(
        engine="e", model="m", revision="1", dtype="int8", block_tokens=4, layers=2, kv_heads=1, head_dim=512
    )
    space = Space(layout, "t", Registry())
    space.adopt(Known(b"d" * 32, 0, b"s" * 32, 4))
    size, keys = space.shard_bytes[0], np.arange(4 * 32, dtype=np.uint8).reshape(4, 32)
    data = np.random.default_rng(1).integers(0, 256, (4, size), dtype=np.uint8)
    where = places(data, Wanted("source", 4, size, writing=False), Registry())
    metas = tuple(bytes([i]) for i in range(4))
    step = Put(0, keys, where, WireHint(position=8), b"p" * 32, metas)
    for held, parent in ((0, b"p" * 32), (3, keys[2].tobytes())):
        sent = rpc.sending(space, step, held, 1 << 20)
        header = sent.header
        assert (sent.first, header.chain.parent, header.chain.position) == (held, parent, 8 + held)
        assert (header.chain.keys, list(header.meta)) == (keys[held:].tobytes(), list(metas[held:]))
        assert list(sent.blocks) == [block.tobytes() for block in data[held:]]
        sums = [native.part_checksums(block.tobytes(), space.part_bytes[0]).astype("<u8") for block in data[held:]]
        assert header.checksums == b"".join(one.tobytes() for one in sums)


@pytest.mark.parametrize("flipped", [0, 1, 4095, 4096, 4200, BLOCK - 1])
def test_one_wrong_byte_ends_the_run_before_its_block(flipped: int) -> None:
    data, memory = payload(3), np.zeros(3 * BLOCK, np.uint8)

    def wrong() -> Iterator[store.GetResponse]:
        for message in messages(data.tobytes(), BLOCK):
            if message.WhichOneof("message") == "block":
                index = message.block.index
            if message.WhichOneof("message") == "data" and index == 1:
                bad = bytearray(message.data.payload)
                bad[flipped] ^= 1
                message.data.payload = bytes(bad)
            yield message

    told = landed(wrong(), into(memory, 3)).told()
    assert (told.blocks, told.blocks_corrupt) == (1, 1)
    assert np.array_equal(memory[:BLOCK], data[:BLOCK])
    assert landed(wrong(), into(memory, 3), verify=False).blocks == 3


def test_a_node_that_breaks_the_contract_is_not_believed() -> None:
    data, memory = payload(2).tobytes(), np.zeros(2 * BLOCK, np.uint8)
    good = list(messages(data, BLOCK))
    skipped = [good[2], good[3], good[4]]  # begins with block 1
    assert landed(iter(skipped), into(memory, 2)).blocks == 0
    too_long = [good[0], good[1], store.GetResponse(data=store.GetData(payload=b"x")), *good[2:]]
    assert landed(iter(too_long), into(memory, 2)).blocks <= 2
    longer = [good[0], store.GetResponse(data=store.GetData(payload=b"x" * (BLOCK + 1)))]
    assert landed(iter(longer), into(memory, 2)).told().blocks_corrupt == 1
    assert landed(iter([good[1], *good]), into(memory, 2)).blocks == 2  # bytes of no block are nobody's


@given(st.binary(max_size=200))
def test_any_answer_is_survived(raw: bytes) -> None:
    memory = np.zeros(BLOCK, np.uint8)
    try:
        message = store.GetResponse.FromString(raw)
    except rpc.DecodeError:
        return
    landed(iter([message]), into(memory, 1))


class Failed:
    def __init__(self, code: grpc.StatusCode, *, trailing: object = ()) -> None:
        self._code, self._trailing = code, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "what gRPC says"

    def trailing_metadata(self) -> object:
        return self._trailing


def test_statuses_become_those_of_the_steps() -> None:
    detail = store.ErrorDetail(field="shard", reason="3, but the namespace has 1", limit=7).SerializeToString()
    told = rpc.told_of(Failed(grpc.StatusCode.INVALID_ARGUMENT, trailing=((errors.DETAIL_KEY, detail),)))
    assert (told.status, told.field, told.limit) == (Status.BAD_INPUT, "shard", 7)
    for code, status in (
        (grpc.StatusCode.NOT_FOUND, Status.STALE_NAMESPACE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Status.REJECTED),
        (grpc.StatusCode.UNAUTHENTICATED, Status.DENIED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Status.LATE),
        (grpc.StatusCode.UNAVAILABLE, Status.UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, Status.UNAVAILABLE),
        (grpc.StatusCode.UNIMPLEMENTED, Status.UNAVAILABLE),
    ):
        assert rpc.told_of(Failed(code)).status == status
    junk = rpc.told_of(Failed(grpc.StatusCode.INTERNAL, trailing=((errors.DETAIL_KEY, b"\xff\xff"),)))
    assert junk.reason == "what gRPC says"


def test_what_landed_before_a_failure_counts() -> None:
    data, memory = payload(2), np.zeros(2 * BLOCK, np.uint8)
    landing = landed(iter(list(messages(data.tobytes(), BLOCK))[:2]), into(memory, 2))
    told = rpc.told_of(Failed(grpc.StatusCode.UNAVAILABLE), landing)
    assert (told.status, told.blocks, told.bytes) == (Status.UNAVAILABLE, 1, BLOCK)


@given(st.integers(1, 3), st.integers(1, 2 * BLOCK))
def test_a_put_is_cut_to_messages(blocks: int, data_bytes: int) -> None:
    data = payload(blocks).tobytes()
    cut = [data[i * BLOCK : (i + 1) * BLOCK] for i in range(blocks)]
    first, *rest = rpc.Sending(0, store.PutHeader(), cut, data_bytes).messages()
    assert first.WhichOneof("message") == "header"
    assert b"".join(message.data.payload for message in rest) == data
    assert max(len(message.data.payload) for message in rest) <= data_bytes


def test_outcomes_of_a_put() -> None:
    sent = rpc.Sending(2, store.PutHeader(), [b"x"] * 7, 10)
    response = store.PutResponse(stored=1, statuses=bytes(range(7)))
    outcomes = rpc.put_told(sent, response).outcomes
    assert list(outcomes) == [
        *[PutOutcome.HELD] * 2,
        PutOutcome.STORED,
        PutOutcome.HELD,
        PutOutcome.PENDING,
        PutOutcome.FULL,
        PutOutcome.TOO_LARGE,
        PutOutcome.LAPSED,
        PutOutcome.LAPSED,
    ]
