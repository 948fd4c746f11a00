"""Follows among all else that visitors do: the real code and core, in virtual time. Nobody reads a part that is not
recorded, or anything by an answer that is over; nobody waits longer than he said; and at the end nothing is left.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from kvstore.wire import store
from tests.model import following_rig
from tests.model.test_visitors import Run, VisitorMachine, at_once, beside, moments, runs, which
from tests.model.visitor_parts import DEADLINE_S, Client, Filling, Follow
from tests.model.visitor_rig import CHAINS, LIMITS, PARTS

waits = st.sampled_from([0.0, 0.0, 0.01, 0.3])


class FollowingMachine(VisitorMachine):
    def a_follow(self, index: int) -> tuple[Client, Follow] | None:
        found = [(client, one) for client in self.rig.clients for one in client.follows.values()]
        return found[index % len(found)] if found else None

    @rule(index=which, run=runs, wait_s=waits, soon=st.one_of(st.none(), moments))
    def follow(self, index: int, run: tuple[int, int], wait_s: float, soon: float | None) -> None:
        keys = CHAINS[run[0]][: min(run[1], 3)]  # a window
        self.does(following_rig.follow(self.rig, self.client(index), keys, wait_s), soon)

    @rule(index=which, wait_s=waits, soon=st.one_of(st.none(), moments))
    def go_on(self, index: int, wait_s: float, soon: float | None) -> None:
        found = self.a_follow(index)
        if found is not None:
            self.does(following_rig.go_on(self.rig, *found, wait_s), soon)

    @rule(index=which)
    def leave(self, index: int) -> None:
        found = self.a_follow(index)
        if found is not None:
            self.run(following_rig.leave(self.rig, *found))

    @rule(index=which, run=runs, follower=which, published=st.integers(0, 3), seals=st.booleans())
    def follow_a_publisher(self, index: int, run: tuple[int, int], follower: int, published: int, seals: bool) -> None:
        """From the beginning to the end."""
        client, keys = self.client(index), CHAINS[run[0]][: min(run[1], 3)]
        beside(self.run, following_rig.follow(self.rig, self.client(follower), keys, 0.1), 0.001)
        for filling in reserved(self.run, client, run):
            for part in range(published):
                publish(self.run, client, filling, part)
                self.go_on_all()
            self.run(self.rig.end_filling(client, filling, store.METHOD_SEAL if seals else store.METHOD_ABORT))
        self.go_on_all()

    def go_on_all(self) -> None:
        for client in self.rig.clients:
            for one in list(client.follows.values()):
                self.does(following_rig.go_on(self.rig, client, one, 0.01), None)


def reserved(run: Run, client: Client, of: tuple[int, int]) -> list[Filling]:
    known = set(client.fillings)
    run(run.rig.reserve(client, CHAINS[of[0]][: of[1]]))
    return [client.fillings[number] for number in set(client.fillings) - known]


def publish(run: Run, client: Client, filling: Filling, part: int) -> None:
    run(run.rig.fill(client, filling, part, "", DEADLINE_S))
    run(run.rig.end_filling(client, filling, store.METHOD_PUBLISH, part))


TestFollowing = FollowingMachine.TestCase


@pytest.mark.parametrize("how", ["seal", "abort", "hang up", "clear", "lapse"])
def test_every_part_and_then_the_end(how: str) -> None:
    run = Run(seed=3, clients=3)
    rig, publisher, follower = run.rig, run.rig.clients[1], run.rig.clients[2]
    (filling,) = reserved(run, publisher, (1, 3))
    beside(run, following_rig.follow(rig, follower, CHAINS[1][:3], 1.0), 0.01)
    for part in range(len(PARTS)):
        publish(run, publisher, filling, part)
        run(rig.elapse(0.2))
        (one,) = follower.follows.values()
        assert one.followed.parts == part + 1 and not one.followed.sealed and one.read == 3 * (part + 1)
        beside(run, following_rig.go_on(rig, follower, one, 2.0), 0.0)
    if how == "seal":
        run(rig.end_filling(publisher, filling, store.METHOD_SEAL))
    elif how == "abort":
        run(rig.end_filling(publisher, filling, store.METHOD_ABORT))
    elif how == "lapse":
        run(rig.elapse(LIMITS.reserve_lapse_ms / 1e3))
    else:
        at_once(run, lambda: rig.hang_up(publisher) if how == "hang up" else rig.open())
    run(rig.elapse(0.2))
    assert one.followed.blocks == (3 if how == "seal" else 0)
    assert bool(one.followed.abandoned) == (how != "seal")
    run.close()


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_follower_that_goes_while_it_is_waiting_leaves_nothing(hangs_up: bool) -> None:
    run = Run(seed=4, clients=2)
    rig, publisher, follower = run.rig, *run.rig.clients
    (filling,) = reserved(run, publisher, (1, 3))
    publish(run, publisher, filling, 0)
    beside(run, following_rig.follow(rig, follower, CHAINS[1][:3], 5.0), 0.01)
    beside(run, following_rig.go_on(rig, follower, next(iter(follower.follows.values())), 5.0), 0.01)
    assert rig.core.stats(1)["holds"] == 1
    if hangs_up:
        at_once(run, lambda: rig.hang_up(follower))
    else:
        run(following_rig.leave(rig, follower, next(iter(follower.follows.values()))))
    run(asyncio.sleep(0.05))
    assert rig.core.stats(1)["holds"] == 0
    run.close()
