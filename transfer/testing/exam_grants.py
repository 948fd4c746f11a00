"""The exam of whose grants an endpoint takes, and of those that the caller has just been given."""

from __future__ import annotations

import pytest

from transfer.base import Rights
from transfer.errors import GrantInvalid, Reason
from transfer.grants import parse_descriptor
from transfer.testing.exam_base import FOREVER_S, SENTINEL, ExamBase, examined, read_fails
from transfer.testing.parties import Pair, pairs, pattern

__all__ = ["GrantExam"]

SIZE = 64 << 10


class GrantExam(ExamBase):
    @examined
    async def test_an_endpoint_names_its_peer(self, pair: Pair) -> None:
        await pair.owner.memory("m", 4096, seed=1)
        _, descriptor = await pair.shown("m", [(0, 4096)])
        assert pair.endpoint.incarnation == parse_descriptor(descriptor).incarnation
        mine = pair.reader.incarnation
        assert len(mine) == 16 and any(mine) and mine != pair.endpoint.incarnation
        own, _ = await pair.memory(4096)
        try:
            granted = await pair.reader.grant(own, [(0, 1)], lifetime_s=60.0)
        except ValueError:
            return  # private memory, which this transport does not grant
        assert parse_descriptor(granted.descriptor).incarnation == mine

    @examined
    async def test_fresh_grants_are_read_by(self, pair: Pair) -> None:
        await pair.owner.memory("m", SIZE, seed=2)
        region, memory = await pair.memory(SIZE)
        given = [
            await pair.owner.grant("m", [(half, SIZE // 2)], rights=Rights.READ, lifetime_s=60.0)
            for half in (0, SIZE // 2)
        ]
        fresh = await pair.endpoint.present(given, deadline_s=10.0, fresh=True)
        for half, presented in zip((0, SIZE // 2), fresh, strict=True):
            await pair.endpoint.read(pairs(region, presented, [(half, half, SIZE // 2)]), deadline_s=FOREVER_S)
        assert (memory == pattern(SIZE, 2)).all()
        await read_fails(pair, pairs(region, fresh[0], [(0, SIZE // 2, 1)]), Reason.OUT_OF_BOUNDS, [0])

    @examined
    async def test_fresh_ones_that_are_not_open_nothing(self, pair: Pair) -> None:
        """Told at once, or by the first batch; and what is good goes on."""
        await pair.owner.memory("m", SIZE, seed=3)
        region, memory = await pair.memory(SIZE)
        memory[:] = SENTINEL
        good = await pair.owner.grant("m", [(0, SIZE)], rights=Rights.READ, lifetime_s=60.0)
        gone = await pair.owner.grant("m", [(0, SIZE)], rights=Rights.READ, lifetime_s=60.0)
        await pair.owner.revoke(gone)
        forged = good[:-1] + bytes((good[-1] ^ 1,))
        for bad in (gone, forged):
            try:
                (presented,) = await pair.endpoint.present([bad], deadline_s=10.0, fresh=True)
            except GrantInvalid:
                continue
            await read_fails(pair, pairs(region, presented, [(0, 0, SIZE)]), Reason.REVOKED, [0])
        assert (memory == SENTINEL).all()
        with pytest.raises(GrantInvalid):
            await pair.endpoint.present([good[:40]], deadline_s=10.0, fresh=True)
        (presented,) = await pair.endpoint.present([good], deadline_s=10.0, fresh=True)
        await pair.endpoint.read(pairs(region, presented, [(0, 0, SIZE)]), deadline_s=FOREVER_S)
        assert (memory == pattern(SIZE, 3)).all()
