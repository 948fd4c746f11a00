"""The exam that every transport passes. Subclass it in a test module and say how a pair is made and how time passes.

After every kind of answer the destination is overwritten, and must stay so: bytes that land after the answer are what
this package exists to prevent.
"""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from transfer.base import LEAF_BYTES, Batch, Extent, Landed, Presented, Rights, Transfer
from transfer.errors import (
    GrantInvalid,
    PeerUnreachable,
    Reason,
    TransferError,
    TransferFailed,
)
from transfer.pending import NO_DIGESTS
from transfer.testing.exam_base import (
    DYING,
    FOREVER_S,
    MIB,
    OFFSETS,
    SENTINEL,
    SIZES,
    ExamBase,
    examined,
    failed,
    read_fails,
)
from transfer.testing.exam_grants import GrantExam
from transfer.testing.exam_writes import WriteExam, WritePeerFailureExam
from transfer.testing.parties import Pair, pairs, pattern
from transfer.testing.wire import digests_of

__all__ = ["ExamBase", "PeerFailureExam", "TransportExam", "examined"]


class TransportExam(WriteExam, GrantExam):
    """Bytes, answers, grants, regions."""

    @examined
    async def test_reads_are_exact_at_odd_offsets_and_sizes(self, pair: Pair) -> None:
        size = 3 * MIB
        source = pattern(size, 1)
        await pair.owner.memory("m", size, seed=1)
        region, memory = await pair.memory(size)
        presented, _ = await pair.shown("m", [(0, size)])
        for length in SIZES:
            for here, there in zip(OFFSETS, reversed(OFFSETS), strict=True):
                memory[:] = SENTINEL
                batch = pairs(region, presented, [(here, there, length)])
                landed = await pair.endpoint.read(batch, deadline_s=FOREVER_S)
                assert landed.bytes == length
                assert (memory[here : here + length] == source[there : there + length]).all()
                assert (memory[:here] == SENTINEL).all() and (memory[here + length :] == SENTINEL).all()
        await self.stays_quiet(memory)

    @examined
    async def test_writes_are_exact_at_odd_offsets_and_sizes(self, pair: Pair) -> None:
        size = 3 * MIB
        await pair.owner.memory("m", size, seed=1)
        expected = pattern(size, 1)
        region, memory = await pair.memory(size)
        memory[:] = pattern(size, 2)
        presented, _ = await pair.shown("m", [(0, size)], rights=Rights.WRITE)
        for length in SIZES:
            for here, there in zip(OFFSETS, reversed(OFFSETS), strict=True):
                await pair.endpoint.write(pairs(region, presented, [(here, there, length)]), deadline_s=FOREVER_S)
                expected[there : there + length] = memory[here : here + length]
                assert await pair.owner.digest("m", 0, size) == hashlib.sha256(expected.tobytes()).hexdigest()

    @examined
    async def test_digests_are_those_of_the_bytes(self, pair: Pair) -> None:
        """Parts that are not extents: leaves run over extents' borders, and slices over parts'."""
        size = 5 * MIB
        source = pattern(size, 3)
        await pair.owner.memory("m", size, seed=3)
        region, memory = await pair.memory(size)
        presented, _ = await pair.shown("m", [(0, size)])
        lengths = [1, 4095, 0, 70_001, MIB + 5, 12, 2 * MIB, 4096]
        places, here, there = [], 7, 100
        for length in lengths:
            places.append((here, there, length))
            here, there = here + length + 13, there + length + 64
        total = sum(lengths)
        stream = np.concatenate([source[there : there + length] for _, there, length in places])
        for parts in ([total], lengths, [5, 0, LEAF_BYTES, 3 * MIB, total - 3 * MIB - LEAF_BYTES - 5]):
            batch = pairs(region, presented, places)
            landed = await pair.endpoint.read(batch, deadline_s=FOREVER_S, parts=parts)
            checksums, leaves = digests_of(stream, parts)
            assert landed.checksums.tolist() == checksums.tolist()
            assert landed.leaves.tolist() == leaves.tolist()
        assert (np.concatenate([memory[a : a + n] for a, _, n in places]) == stream).all()
        plain = await pair.endpoint.read(pairs(region, presented, places), deadline_s=FOREVER_S)
        assert len(plain.checksums) == len(plain.leaves) == 0

    @examined
    async def test_ten_thousand_extents(self, pair: Pair) -> None:
        count, size = 10_000, 512
        source = pattern(count * size, 4)
        await pair.owner.memory("m", count * size, seed=4)
        region, memory = await pair.memory(count * size)
        presented, _ = await pair.shown("m", [(0, count * size)])
        order = np.random.default_rng(5).permutation(count)
        batch = pairs(region, presented, [(int(to) * size, i * size, size) for i, to in enumerate(order)])
        landed = await pair.endpoint.read(batch, deadline_s=FOREVER_S, parts=[size] * count)
        assert (memory.reshape(count, size)[order] == source.reshape(count, size)).all()
        assert len(landed.checksums) == count
        await self.stays_quiet(memory)

    @examined
    async def test_a_batch_without_bytes_lands(self, pair: Pair) -> None:
        await pair.owner.memory("m", 4096, seed=1)
        region, _ = await pair.memory(4096)
        presented, _ = await pair.shown("m", [(0, 4096)])
        for places in ([], [(0, 0, 0), (4096, 4096, 0)]):
            landed = await pair.endpoint.read(pairs(region, presented, places), deadline_s=FOREVER_S)
            assert landed.bytes == 0

    # -- answers

    @examined
    async def test_a_thousand_concurrent_batches(self, pair: Pair) -> None:
        """Each reads a place of its own; a third is cancelled at once, a third has little time; no answer is lost."""
        count, size = 1_000, 12_345
        source = pattern(4 * MIB, 6)
        await pair.owner.memory("m", 4 * MIB, seed=6)
        region, memory = await pair.memory(count * size)
        presented, _ = await pair.shown("m", [(0, 4 * MIB)])
        transfers: list[Transfer] = []
        for i in range(count):
            batch = pairs(region, presented, [(i * size, (i * 3_001) % (3 * MIB), size)])
            transfers.append(pair.endpoint.read(batch, deadline_s=0.000_5 if i % 3 == 2 else FOREVER_S))
            if i % 3 == 1:
                transfers[-1].cancel()
        answers = [await self.answered(transfer) for transfer in transfers]
        whole = 0
        for i, answer in enumerate(answers):
            if isinstance(answer, Landed):
                whole += 1
                there = (i * 3_001) % (3 * MIB)
                assert (memory[i * size : (i + 1) * size] == source[there : there + size]).all()
            else:
                assert i % 3 != 0, answer
        assert whole >= count // 3
        await self.stays_quiet(memory)

    @examined
    async def test_closing_an_endpoint_ends_its_batches(self, pair: Pair) -> None:
        batch, _, memory, _ = await self.long_batch(pair)
        transfers = [pair.endpoint.read(batch, deadline_s=FOREVER_S) for _ in range(3)]
        await self.pause(1)
        await pair.endpoint.close()
        assert all(transfer.done for transfer in transfers)
        await self.stays_quiet(memory)
        with pytest.raises(TransferFailed):
            await pair.endpoint.read(batch, deadline_s=FOREVER_S)

    # -- grants

    @examined
    async def test_nothing_moves_out_of_bounds(self, pair: Pair) -> None:
        size = 64 << 10
        await pair.owner.memory("m", size, seed=7)
        region, memory = await pair.memory(size)
        presented, _ = await pair.shown("m", [(4096, 8192), (20_000, 100)])
        inside = (0, 4096, 8192)
        for outside in [(0, 4095, 2), (0, 12_287, 2), (0, 20_000, 101), (0, 0, 1), (0, size, 1), (0, 2**62, 1)]:
            await read_fails(pair, pairs(region, presented, [inside, outside, inside]), Reason.OUT_OF_BOUNDS, [1])
        for outside in [(size, 4096, 1), (size - 1, 4096, 2), (2**62, 4096, 1)]:
            await read_fails(pair, pairs(region, presented, [outside, inside]), Reason.OUT_OF_BOUNDS, [0])
        assert not memory.any(), "bytes moved by a batch that was refused"
        with pytest.raises(ValueError, match="never presented"):
            unknown = Presented(presented.handle + 1000, Rights.READ, ((0, size),), size)
            pair.endpoint.read(pairs(region, unknown, [inside]), deadline_s=1.0)
        with pytest.raises(ValueError, match="not registered"):
            batch = Batch.of([(Extent(region.id + 1000, 0, 1), presented.extent(4096, 1))])
            pair.endpoint.read(batch, deadline_s=1.0)

    @examined
    async def test_rights_are_kept(self, pair: Pair) -> None:
        size = 8192
        await pair.owner.memory("m", size, seed=8)
        before = await pair.owner.digest("m", 0, size)
        region, memory = await pair.memory(size)
        constant, _ = await pair.memory(size, writable=False)
        readable, _ = await pair.shown("m", [(0, size)])
        writable, _ = await pair.shown("m", [(0, size)], rights=Rights.WRITE)
        with pytest.raises(TransferFailed) as caught:
            await pair.endpoint.write(pairs(region, readable, [(0, 0, size)]), deadline_s=FOREVER_S)
        assert failed(caught.value) == {Reason.NOT_ALLOWED: (0,)}
        await read_fails(pair, pairs(region, writable, [(0, 0, size)]), Reason.NOT_ALLOWED, [0])
        await read_fails(pair, pairs(constant, readable, [(0, 0, size)]), Reason.NOT_ALLOWED, [0])
        assert not memory.any()
        assert await pair.owner.digest("m", 0, size) == before
        await pair.endpoint.write(pairs(constant, writable, [(0, 0, size)]), deadline_s=FOREVER_S)
        assert await pair.owner.digest("m", 0, size) == hashlib.sha256(bytes(size)).hexdigest()

    @examined
    async def test_forged_descriptors_open_nothing(self, pair: Pair) -> None:
        await pair.owner.memory("m", 64 << 10, seed=9)
        descriptor = await pair.owner.grant("m", [(0, 4096)], rights=Rights.READ, lifetime_s=60.0)
        for i in range(len(descriptor)):
            forged = bytearray(descriptor)
            forged[i] ^= 1 << (i % 8)
            with pytest.raises(GrantInvalid):
                await pair.endpoint.present([bytes(forged)], deadline_s=10.0)
        for cut in (b"", descriptor[:-1], descriptor + b"\0", descriptor[:40]):
            with pytest.raises(GrantInvalid):
                await pair.endpoint.present([cut], deadline_s=10.0)
        assert len(await pair.endpoint.present([descriptor], deadline_s=10.0)) == 1

    @examined
    async def test_revoked_grants_end(self, pair: Pair) -> None:
        size = 64 << 10
        source = pattern(size, 12)
        await pair.owner.memory("m", size, seed=12)
        region, memory = await pair.memory(4 * 4096)
        first, descriptor = await pair.shown("m", [(0, size)])
        second, _ = await pair.shown("m", [(0, size)])
        await pair.owner.revoke(descriptor)
        triples = [(i * 4096, i * 4096, 4096) for i in range(4)]
        batch = Batch.of(
            (Extent(region.id, here, n), (first if i % 2 else second).extent(there, n))
            for i, (here, there, n) in enumerate(triples)
        )
        error = await read_fails(pair, batch, Reason.REVOKED, [1, 3])
        for i in range(4):
            place = slice(i * 4096, (i + 1) * 4096)
            assert not error.arrived[i] or (memory[place] == source[place]).all()
        with pytest.raises(GrantInvalid):
            forged = descriptor[:-1] + bytes((descriptor[-1] ^ 1,))
            await pair.endpoint.present([forged, descriptor], deadline_s=10.0)
        await self.stays_quiet(memory)

    @examined
    async def test_revoked_in_the_middle(self, pair: Pair) -> None:
        batch, _, memory, descriptor = await self.long_batch(pair)
        transfer = pair.endpoint.read(batch, deadline_s=FOREVER_S)
        await self.pause(2)
        await pair.owner.revoke(descriptor)
        answer = await self.answered(transfer)
        await self.stays_quiet(memory)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) == {Reason.REVOKED} and answer.elsewhere
        await read_fails(pair, batch, Reason.REVOKED, range(len(batch)))

    @examined
    async def test_expired_grants_end(self, pair: Pair) -> None:
        await pair.owner.memory("m", 8192, seed=13)
        region, memory = await pair.memory(8192)
        presented, _ = await pair.shown("m", [(0, 8192)], lifetime_s=1.5)
        await pair.endpoint.read(pairs(region, presented, [(0, 0, 8192)]), deadline_s=FOREVER_S)
        memory[:] = 0
        await asyncio.sleep(1.6)
        with pytest.raises(TransferFailed) as caught:
            await pair.endpoint.read(pairs(region, presented, [(0, 0, 8192)]), deadline_s=FOREVER_S)
        assert set(failed(caught.value)) <= {Reason.EXPIRED, Reason.REVOKED}
        assert caught.value.elsewhere and not memory.any()

    @examined
    async def test_expired_in_the_middle(self, pair: Pair) -> None:
        """Batch after batch, until the grant's time is over: whichever it falls into ends with it."""
        batch, region, memory, _ = await self.long_batch(pair)
        presented, _ = await pair.shown("long", [(0, 4 * self.long_bytes)], lifetime_s=0.4)
        places = [(here, there, length) for _, here, _, there, length in batch.table.tolist()]
        batch = pairs(region, presented, places)
        loop = asyncio.get_running_loop()
        over = loop.time() + 0.4
        answer: Landed | TransferError = Landed(0, NO_DIGESTS, NO_DIGESTS)
        while isinstance(answer, Landed):
            begun = loop.time()
            answer = await self.answered(pair.endpoint.read(batch, deadline_s=FOREVER_S))
            assert begun < over or not isinstance(answer, Landed), "the grant's time was over"
        await self.stays_quiet(memory)
        assert set(failed(answer)) <= {Reason.EXPIRED, Reason.REVOKED} and answer.elsewhere
        again = await self.answered(pair.endpoint.read(batch, deadline_s=FOREVER_S))
        assert isinstance(again, TransferFailed) and not again.arrived.any()
        assert (memory == SENTINEL).all(), "bytes moved after the grant's end"

    # -- regions

    @examined
    async def test_the_owners_region_deregistered_in_flight(self, pair: Pair) -> None:
        batch, _, memory, _ = await self.long_batch(pair)
        transfer = pair.endpoint.read(batch, deadline_s=FOREVER_S)
        await self.pause(2)
        await pair.owner.deregister("long")
        answer = await self.answered(transfer)
        await self.stays_quiet(memory)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) == {Reason.REVOKED} and answer.elsewhere
        await read_fails(pair, batch, Reason.REVOKED, range(len(batch)))

    @examined
    async def test_what_cannot_be_is_said_at_once(self, pair: Pair) -> None:
        with pytest.raises(TypeError, match="memory"):
            await pair.reader.register(object())
        with pytest.raises(ValueError, match="read-only"):
            await pair.reader.register(b"constant")
        region, _ = await pair.memory(4096)
        with pytest.raises(ValueError, match=r"lifetime_s|private memory"):
            await pair.reader.grant(region, [(0, 1)], lifetime_s=0.0)
        with pytest.raises(ValueError, match="deadline_s"):
            pair.endpoint.read(Batch.of([]), deadline_s=-1.0)


class PeerFailureExam(WritePeerFailureExam):
    """A peer that dies or stops. The pair's owner is Mortal."""

    @examined
    async def test_peer_killed_in_the_middle(self, pair: Pair) -> None:
        batch, _, memory, _ = await self.long_batch(pair)
        transfer = pair.endpoint.read(batch, deadline_s=10.0)
        await self.pause(2)
        await self.mortal(pair).kill()
        answer = await self.answered(transfer)
        source = pattern(4 * self.long_bytes, 11)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) <= DYING
        else:
            last = dict.fromkeys(range(4), 0) | {(i * 3) % 4: i % 4 for i in range(self.long_extents)}
            for here, there in last.items():
                a, b = here * self.long_bytes, there * self.long_bytes
                assert (memory[a : a + self.long_bytes] == source[b : b + self.long_bytes]).all()
        await self.stays_quiet(memory)
        with pytest.raises(TransferError):
            await pair.endpoint.read(batch, deadline_s=10.0)
        await self.stays_quiet(memory)
        with pytest.raises(PeerUnreachable):
            await self.again(pair)

    @examined
    async def test_peer_stopped_in_the_middle(self, pair: Pair) -> None:
        """However long it stops: an answer in time, quiet memory, also when the peer goes on."""
        batch, _, memory, _ = await self.long_batch(pair)
        descriptor = await pair.owner.grant("long", [(0, 1)], rights=Rights.READ, lifetime_s=60.0)
        transfer = pair.endpoint.read(batch, deadline_s=0.5)
        await self.pause(2)
        await self.mortal(pair).stop()
        try:
            await self.answered(transfer)
            await self.stays_quiet(memory)
            with pytest.raises(PeerUnreachable):
                await pair.endpoint.present([descriptor], deadline_s=0.2)
        finally:
            await self.mortal(pair).resume()
        await self.stays_quiet(memory)
