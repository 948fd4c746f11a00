"""Grants: descriptors that cannot be changed, a book that forgets what has ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.errors import GrantInvalid, LimitReached
from transfer.grants import Grant, GrantBook, Rights, normal_ranges, parse_descriptor

KEY, LIFE = b"k" * 32, b"i" * 16
SECOND = 1_000_000_000


class Touched:
    """Slots that somebody still touches."""

    def __init__(self) -> None:
        self.slots: set[int] = set()

    def quiet(self, slot: int) -> bool:
        return slot not in self.slots


def book(touched: Touched | None = None, grants_max: int = 4, key: bytes = KEY, life: bytes = LIFE) -> GrantBook:
    return GrantBook(key, life, (touched or Touched()).quiet, grants_max=grants_max)


def issue(of: GrantBook, *, region: int = 1, lifetime_s: float = 1.0, now_ns: int = 0) -> Grant:
    ranges = normal_ranges([(0, 100)], 1000)
    return of.issue(region, 1000, ranges, rights=Rights.READ, lifetime_s=lifetime_s, now_ns=now_ns)


def test_a_descriptor_says_what_was_granted() -> None:
    kept = book()
    ranges = normal_ranges([(500, 10), (0, 100), (90, 20)], 1000)
    grant = kept.issue(7, 1000, ranges, rights=Rights.READ | Rights.WRITE, lifetime_s=2.5, now_ns=0)
    said = parse_descriptor(grant.descriptor)
    assert said.ranges == grant.ranges == ((0, 110), (500, 10))
    assert (said.region, said.region_bytes, said.lifetime_ms, said.rights) == (
        7,
        1000,
        2500,
        Rights.READ | Rights.WRITE,
    )
    assert said.incarnation == LIFE
    assert kept.find(grant.descriptor, 2 * SECOND) == grant


@given(st.data())
def test_a_changed_descriptor_opens_nothing_and_parses_or_is_refused(data: st.DataObject) -> None:
    kept = book()
    issued = issue(kept).descriptor
    changed = bytearray(issued)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    assert (kept.find(bytes(changed), 0) is None) == (changed != issued)
    try:
        said = parse_descriptor(bytes(changed))
    except GrantInvalid:
        return
    assert all(length > 0 and offset + length <= said.region_bytes for offset, length in said.ranges)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(GrantInvalid):
        parse_descriptor(data)
    assert book().find(data, 0) is None


def test_other_issuers_grants_open_nothing() -> None:
    descriptor = issue(book()).descriptor
    assert book(key=b"x" * 32).find(descriptor, 0) is None
    other_life = book(life=b"j" * 16)
    issue(other_life)
    assert other_life.find(descriptor, 0) is None


def test_grants_end_by_time_and_by_revocation() -> None:
    kept = book()
    grant = issue(kept, lifetime_s=1.0, now_ns=5 * SECOND)
    assert kept.find(grant.descriptor, 6 * SECOND - 1) == grant
    assert kept.find(grant.descriptor, 6 * SECOND) is None
    other = issue(kept, now_ns=5 * SECOND)
    assert kept.end(other)
    assert not kept.end(other)
    assert kept.find(other.descriptor, 5 * SECOND) is None


def test_a_slot_is_used_again_only_when_it_is_quiet_and_with_a_higher_generation() -> None:
    touched = Touched()
    kept = book(touched, grants_max=1)
    first = issue(kept)
    kept.end(first)
    touched.slots.add(first.slot)
    kept.settle(first)
    with pytest.raises(LimitReached, match="live") as caught:
        issue(kept)
    assert caught.value.limit == "grants_max"
    assert kept.of_region(1) == [first]
    touched.slots.clear()
    second = issue(kept)
    assert (second.slot, second.generation) == (first.slot, first.generation + 1)
    assert kept.find(first.descriptor, 0) is None
    assert kept.find(second.descriptor, 0) == second
    assert kept.of_region(1) == [second]


def test_lapsed_grants_make_room_and_the_book_stays_small() -> None:
    kept = book(grants_max=4)
    for i in range(10_000):
        grant = issue(kept, lifetime_s=100.0, now_ns=i * SECOND)
        if i % 2:
            kept.end(grant)
            kept.settle(grant)
        if len(kept) >= 3:
            for live in kept.all():
                kept.end(live)
    assert len(kept._expiries) < 3_000
    lapsing = book(grants_max=2)
    for i in range(100):
        issue(lapsing, lifetime_s=1.0, now_ns=i * SECOND)
    assert len(lapsing) <= 2


@pytest.mark.parametrize("ranges", [[(0, 1001)], [(-1, 5)], [(5, -1)], [(1000, 1)]])
def test_ranges_beyond_the_region_are_named(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="ranges"):
        normal_ranges(ranges, 1000)


def test_what_was_got_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        normal_ranges([(5, 0)], 1000)
    with pytest.raises(ValueError, match="lifetime_s"):
        issue(book(), lifetime_s=0)
    with pytest.raises(ValueError, match="rights"):
        book().issue(1, 1000, ((0, 1),), rights=Rights(0), lifetime_s=1.0, now_ns=0)
    with pytest.raises(ValueError, match="grants_max"):
        book(grants_max=0)
