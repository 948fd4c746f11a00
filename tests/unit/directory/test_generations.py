"""How often namespaces were cleared, as nodes tell each other: no clear is lost, in whatever order they hear of it."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory import generations
from kvstore.directory.generations import (
    FIRST,
    GENERATION_MAX,
    LAST,
    Clears,
    Generations,
    Page,
    after,
)
from kvstore.errors import Rejected

A, B, C = (name * 16 for name in (b"a", b"b", b"c"))
NS = hashlib.sha256(b"a namespace").digest()
OTHER = hashlib.sha256(b"another").digest()
COUNTS = st.dictionaries(st.sampled_from((A, B, C)), st.integers(1, 9))
CLEARS = st.builds(lambda floor, by: Clears(floor, tuple(sorted(by.items()))), st.integers(0, 20), COUNTS)


def exchanged(asking: Generations, answering: Generations) -> int:
    """As Clearing.agree does it; how many messages that took."""
    first: bytes | None = FIRST
    messages = 0
    while first is not None:
        page = asking.page(first)
        answering.merge(page.rows)
        answer = answering.answer(page)
        asking.merge(answer.rows)
        first, messages = after(answer.last), messages + 1
    return messages


def test_a_clear_is_a_generation_of_its_own() -> None:
    table = Generations()
    assert table.of(NS).generation == 0 and table.hash == 0
    seen = [table.clear(NS, node).generation for node in (A, A, B, A)]
    assert seen == [1, 2, 3, 4]
    assert table.of(OTHER).generation == 0


def test_two_clears_that_did_not_know_of_each_other_both_hold() -> None:
    """What was put at one after its clear, and before the other's, must not be of the generation that both end in."""
    one, two = Generations(), Generations()
    one.clear(NS, C), two.merge(one.rows.items())
    both = {one.clear(NS, A).generation, two.clear(NS, B).generation}
    exchanged(one, two)
    assert one.of(NS) == two.of(NS)
    assert one.of(NS).generation > max(both)


def test_one_clear_heard_of_by_two_ways_is_one() -> None:
    one, two = Generations(), Generations()
    one.clear(NS, A)
    assert two.raise_to(NS, 1) and not two.raise_to(NS, 1)
    exchanged(one, two)
    assert one.of(NS).generation == two.of(NS).generation == 1
    assert two.clear(NS, B).generation == 2


STEP = st.tuples(st.sampled_from("ABC"), st.sampled_from(("clear", "exchange", "note")), st.integers(0, 2))


@given(st.lists(STEP), st.booleans())
def test_whatever_happens_a_clear_outdates_all_that_was_known_where_it_happened(
    steps: list[tuple[str, str, int]], notes: bool
) -> None:
    """Each clear is remembered with the generation that it ended; whoever has heard of it is beyond that."""
    tables = {name: Generations() for name in "ABC"}
    heard: dict[str, set[int]] = {name: set() for name in "ABC"}  # clears
    ended: list[int] = []
    for name, what, other in steps:
        table, there = tables[name], "ABC"[other]
        if what == "clear":
            ended.append(table.of(NS).generation)
            heard[name].add(len(ended) - 1)
            table.clear(NS, name.encode() * 16)
        elif what == "exchange":
            before = table.of(NS), tables[there].of(NS)
            exchanged(table, tables[there])
            apart = heard[name] - heard[there] and heard[there] - heard[name]
            if apart and not notes:  # each knew of one that the other did not
                assert table.of(NS).generation > max(each.generation for each in before)
            heard[name], heard[there] = heard[name] | heard[there], heard[name] | heard[there]
            assert table.of(NS) == tables[there].of(NS) and table.hash == tables[there].hash
        elif notes:
            table.raise_to(NS, tables[there].of(NS).generation)
        assert all(table.of(NS).generation > ended[clear] for clear in heard[name])


@given(CLEARS, CLEARS, CLEARS)
def test_merging_knows_no_order(one: Clears, two: Clears, three: Clears) -> None:
    assert one.merged(two) == two.merged(one)
    assert one.merged(two).merged(three) == one.merged(two.merged(three))
    assert one.merged(one) == one
    assert one.merged(two).generation >= max(one.generation, two.generation)
    assert (one.word == two.word) == (one == two or one.generation == two.generation == 0)


@given(st.dictionaries(st.binary(min_size=32, max_size=32), CLEARS, max_size=30), st.integers(1, 8))
def test_pages_bring_two_tables_together(rows: dict[bytes, Clears], room: int) -> None:
    half = sorted(rows)[::2]
    one, two = Generations({k: rows[k] for k in half}), Generations({k: rows[k] for k in rows if k not in half})
    if half:  # and one that both have, not alike
        two.merge([(half[0], Clears(0, ((C, 3),)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations, "PAGE_NODES", room)
        exchanged(one, two)
    assert one.rows == two.rows and one.hash == two.hash
    assert Generations(one.rows).hash == one.hash, "whatever the order"
    assert one.page(FIRST) == Page(FIRST, LAST, tuple(sorted(one.rows.items())))
    assert one.answer(two.page(FIRST)).rows == (), "nothing is told twice"


def test_a_large_table_takes_few_messages() -> None:
    rows = {hashlib.sha256(bytes([n % 256, n // 256])).digest(): Clears(0, ((A, 1),)) for n in range(2_000)}
    full, empty = Generations(rows), Generations()
    assert exchanged(empty, full) == 1 and empty.rows == full.rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations, "PAGE_NODES", 200)
        assert exchanged(Generations(), full) == exchanged(full, Generations()) == 20


def test_a_clear_that_was_told_to_nobody_can_be_undone() -> None:
    table = Generations()
    table.clear(OTHER, A)
    before, hashed = table.of(NS), table.hash
    table.clear(NS, A)
    table.undo(NS, before)
    assert (table.of(NS), table.hash, list(table.rows)) == (before, hashed, [OTHER])
    assert table.page(FIRST).rows == ((OTHER, table.of(OTHER)),)


def test_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "CLEARED_MAX", 1)
    monkeypatch.setattr(generations, "CLEARERS_MAX", 2)
    table = Generations()
    table.clear(NS, A)
    with pytest.raises(Rejected, match="cleared_max") as refused:
        table.clear(OTHER, A)
    assert refused.value.limit == "cleared_max"
    table.clear(NS, B)
    table.clear(NS, A)
    with pytest.raises(Rejected, match="clearers_max"):
        table.clear(NS, C)
    table.merge([(OTHER, Clears(0, ((A, 1),))), (NS, Clears(0, ((C, 1),)))])
    assert table.of(NS).generation == 4, "what others know is never refused"


def test_what_makes_no_sense_is_refused() -> None:
    for floor, by in ((-1, ()), (0, ((A, 0),)), (0, ((B, 1), (A, 1))), (0, ((A, 1), (A, 1))), (GENERATION_MAX + 1, ())):
        with pytest.raises(ValueError, match="must be"):
            Clears(floor, by)


def test_the_last_digest_is_the_last() -> None:
    assert after(LAST) is None
    assert after(FIRST) == bytes(31) + b"\1"
    assert all(after(one) == two for one, two in pairwise((b"\0" * 31 + bytes([n])) for n in range(250, 256)))
