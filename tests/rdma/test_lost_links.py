"""What a connection sees when its way is lost: every request comes back with an error and none hangs, and the other
rail goes on. The limits are ten times what the settings say, for a machine that is emulated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("pyverbs.device", reason="no pyverbs here: make setup-rdma", exc_type=ImportError)

from tests.rdma.rails import Rail
from tests.rdma.verbs import WRITE, End, both_ends, join

SIZE = 1 << 20
STEP = 64 << 10
SLACK_S = 5.0
AGAIN_MAX_S = 30.0


@contextlib.contextmanager
def connection(rail: Rail, timeout: int, retries: int) -> Iterator[tuple[End, End, float]]:
    """With the time within which a lost request must have failed."""
    with both_ends(rail, SIZE, timeout, retries) as (near, far):
        yield near, far, SLACK_S + 10 * 4.096e-6 * 2**timeout * (retries + 1)


def write(near: End, *numbers: int) -> None:
    for number in numbers:
        near.post(WRITE, number * STEP % SIZE, STEP, number * STEP % SIZE, number)


def within(limit_s: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def works(near: End, far: End) -> bool:
    near.content[:STEP] = far.content[:STEP].tobytes()[::-1]
    near.content[0] = far.content[0] ^ 1
    write(near, 0)
    return near.completions(1, SLACK_S) == [(0, "SUCCESS")] and near.content[:STEP] == far.content[:STEP]


def test_a_peer_that_is_not_heard(rail: Rail) -> None:
    with connection(rail, timeout=12, retries=3) as (near, far, limit_s):
        assert works(near, far)
        with rail.deaf(rail.far):
            write(near, 0, 1, 2, 3)
            first, *rest = near.completions(4, limit_s)
        assert first == (0, "RETRY_EXC_ERR")
        assert rest == [(number, "WR_FLUSH_ERR") for number in (1, 2, 3)]
        assert (near.state(), far.state()) == ("ERR", "RTS")


def test_a_peer_whose_link_is_down_and_comes_back(rail: Rail) -> None:
    with connection(rail, timeout=14, retries=3) as (near, far, limit_s):
        with rail.down(rail.far):
            for device in (rail.near, rail.far):  # the news travels through the kernel's work queues
                assert within(SLACK_S, lambda device=device: not rail.active(device))
            write(near, 0, 1)
            assert near.completions(2, limit_s) == [(0, "RETRY_EXC_ERR"), (1, "WR_FLUSH_ERR")]
        joined_anew(near, far)
        assert works(near, far)


def test_our_own_link_down(rail: Rail) -> None:
    with connection(rail, timeout=14, retries=3) as (near, far, limit_s):
        with rail.down(rail.near):
            write(near, 0, 1)
            assert near.completions(2, limit_s) == [(0, "LOC_QP_OP_ERR"), (1, "WR_FLUSH_ERR")]
            assert near.state() == "ERR"
        joined_anew(near, far)
        assert works(near, far)


def joined_anew(near: End, far: End) -> None:
    """A link that comes up is not a way at once: addresses are asked for again."""
    end = time.monotonic() + AGAIN_MAX_S
    while True:
        near.renew()
        far.renew()
        try:
            return join(near, far)
        except Exception:
            if time.monotonic() > end:
                raise


def test_a_deadline_of_our_own(rail: Rail) -> None:
    """Seven retries never end on soft-RoCE; a queue pair that is moved to the error state hands everything back."""
    with connection(rail, timeout=14, retries=7) as (near, _, _), rail.deaf(rail.far):
        write(near, 0, 1, 2, 3)
        assert near.completions(1, 1.0) == []
        near.give_up()
        assert near.completions(4, SLACK_S) == [(number, "WR_FLUSH_ERR") for number in range(4)]


def test_a_short_loss_is_healed(rail: Rail) -> None:
    with connection(rail, timeout=16, retries=6) as (near, far, limit_s):
        near.content[:] = b"\x5a" * SIZE
        with rail.deaf(rail.far):
            write(near, 0, 1)
            assert near.completions(1, 0.1) == []
        assert near.completions(2, limit_s) == [(0, "SUCCESS"), (1, "SUCCESS")]
        assert far.content[: 2 * STEP] == near.content[: 2 * STEP]


def test_the_other_rail_takes_over(rail: Rail, other_rail: Rail) -> None:
    with (
        connection(rail, timeout=12, retries=3) as (near, far, limit_s),
        connection(other_rail, timeout=12, retries=3) as (spare, spare_far, _),
    ):
        near.content[:] = spare.content[:] = bytes(range(256)) * (SIZE // 256)
        write(near, *range(4))
        assert near.completions(4, limit_s) == [(number, "SUCCESS") for number in range(4)]
        with rail.down(rail.far):
            write(near, *range(4, 16))
            failed = [number for number, status in near.completions(12, limit_s) if status != "SUCCESS"]
            assert failed == list(range(4, 16))
            write(spare, *failed)
            assert spare.completions(12, limit_s) == [(number, "SUCCESS") for number in failed]
        arrived = 4 * STEP
        assert far.content[:arrived] == near.content[:arrived]
        assert spare_far.content[arrived:] == near.content[arrived:]
