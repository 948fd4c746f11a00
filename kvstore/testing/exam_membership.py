"""What every Membership must do. Subclass `MembershipExam`, say how to make one, and whether its nodes find each other.

Nodes do not speak here: a `Town` answers greetings for them, as the framed doors of real nodes would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from kvstore.directory.agreement import Settings, difference
from kvstore.directory.base import Member, Membership, View
from kvstore.errors import Misconfigured, Unavailable

__all__ = ["MembershipExam", "Town", "member"]

SETTINGS = {"cluster.family_blocks": "4", "format of blocks": "1"}
SEEN_S = 5.0


def member(number: int, *, incarnation: int = 1, port: int = 0) -> Member:
    address = f"127.0.0.1:{port or 20_000 + number}"
    return Member(address, bytes([number]) * 16, incarnation, f"n{number}", host="h", version="0")


@dataclass
class Town:
    """Who answers at which address, and by which settings he goes."""

    doors: dict[str, tuple[Member, Settings]] = field(default_factory=dict)

    async def greet(self, settings: Settings, address: str) -> Member:
        if address not in self.doors:
            raise Unavailable(f"{address}: nobody there")
        found, theirs = self.doors[address]
        differs = difference(settings, theirs, found.name)
        if differs is not None:
            raise Misconfigured(differs)
        return found


class MembershipExam:
    """finds: whether nodes find each other. watches: whether it tells of those who come and go."""

    finds = True
    watches = True

    def membership(self, town: Sequence[str]) -> Membership:
        """A node's; `town`: the addresses of all that will ever live there."""
        raise NotImplementedError

    @asynccontextmanager
    async def living(
        self, town: Town, me: Member, everybody: Sequence[str], settings: Settings = SETTINGS
    ) -> AsyncIterator[Membership]:
        """Joined, its door open; at the end it leaves."""
        one = self.membership(everybody)
        former = town.doors.get(me.address)
        town.doors[me.address] = (me, settings)
        try:
            await one.join(me, settings, lambda address: town.greet(settings, address))
            yield one
        finally:
            town.doors.pop(me.address)
            if former is not None:
                town.doors[me.address] = former
            await one.leave()

    async def until(self, one: Membership, addresses: set[str]) -> View:
        """Its view, when it has exactly these."""
        async with asyncio.timeout(SEEN_S):
            view = one.view
            while {found.address for found in view.members} != addresses:
                view = await one.changed(view.epoch)
            return view

    async def test_alone_it_sees_nobody_and_leaves_as_often_as_it_likes(self) -> None:
        one = self.membership(())
        assert one.view.members == ()
        me = member(1)
        town = Town({me.address: (me, SETTINGS)})
        await one.join(me, SETTINGS, lambda address: town.greet(SETTINGS, address))
        assert one.view.members == () and one.discovery.kind and one.discovery.away_s == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await one.changed(one.view.epoch)
        await one.leave()
        await one.leave()

    async def test_leaving_before_joining_is_nothing(self) -> None:
        await self.membership(()).leave()

    async def test_nodes_find_each_other_and_never_themselves(self) -> None:
        if not self.finds:
            return
        first, second, third = member(1), member(2), member(3)
        everybody, town = [one.address for one in (first, second, third)], Town()
        async with self.living(town, first, everybody) as a, self.living(town, second, everybody) as b:
            before = a.view.epoch
            async with self.living(town, third, everybody) as c:
                await self.until(a, {second.address, third.address})
                await self.until(b, {first.address, third.address})
                view = await self.until(c, {first.address, second.address})
                known = {found.address: found for found in view.members}
                assert known[first.address] in {first, Member(first.address)}  # met, or not yet
                assert not self.watches or a.view.epoch > before
            await self.until(a, {second.address} if self.watches else {second.address, third.address})

    async def test_many_join_at_once(self) -> None:
        if not self.finds:
            return
        nodes = [member(number) for number in range(1, 9)]
        everybody, town = [one.address for one in nodes], Town()

        async def live(me: Member, ready: asyncio.Barrier) -> None:
            async with self.living(town, me, everybody) as one:
                await self.until(one, set(everybody) - {me.address})
                await ready.wait()

        barrier = asyncio.Barrier(len(nodes))
        await asyncio.gather(*(live(me, barrier) for me in nodes))

    async def test_settings_that_differ_are_refused_with_both_values(self) -> None:
        if not self.finds:
            return
        first, second = member(1), member(2)
        everybody, town = [first.address, second.address], Town()
        other = {**SETTINGS, "cluster.family_blocks": "8"}
        async with self.living(town, first, everybody) as a:
            with pytest.raises(Misconfigured, match=r"cluster\.family_blocks: '8' here, '4' at"):
                async with self.living(town, second, everybody, other):
                    pass
            with pytest.raises(Misconfigured, match=r"new setting: 'x' here, not known at"):
                async with self.living(town, second, everybody, {**SETTINGS, "new setting": "x"}):
                    pass
            if self.watches:
                assert a.view.members == ()
            async with self.living(town, second, everybody) as b:
                await self.until(b, {first.address})

    async def test_an_id_that_two_nodes_have_is_refused_with_both_addresses(self) -> None:
        if not self.finds:
            return
        first = member(1)
        copied = replace(first, address=member(2).address, incarnation=7)
        everybody, town = [first.address, copied.address], Town()
        async with self.living(town, first, everybody):
            with pytest.raises(Misconfigured, match="two nodes have it") as refused:
                async with self.living(town, copied, everybody):
                    pass
            assert first.address in str(refused.value) and copied.address in str(refused.value)

    async def test_a_node_comes_back_as_itself_at_another_address_too(self) -> None:
        if not self.finds:
            return
        first, second = member(1), member(2)
        again, moved = replace(first, incarnation=2), member(1, incarnation=3, port=21_001)
        everybody, town = [first.address, second.address, moved.address], Town()
        async with self.living(town, second, everybody) as b:
            await self.killed(town, first, everybody)
            async with self.living(town, again, everybody):
                await self.until(b, {first.address} if self.watches else {first.address, moved.address})
            await self.killed(town, again, everybody)
            async with self.living(town, moved, everybody):
                await self.until(b, {moved.address} if self.watches else {first.address, moved.address})

    async def killed(self, town: Town, me: Member, everybody: Sequence[str]) -> None:
        """It joins and is gone without a word, its door with it."""
        one = self.membership(everybody)
        town.doors[me.address] = (me, SETTINGS)
        await one.join(me, SETTINGS, lambda address: town.greet(SETTINGS, address))
        town.doors.pop(me.address)
        await self.silence(one)

    async def silence(self, one: Membership) -> None:
        """Ends it as kill -9 does."""
        await one.leave()
