"""Which blocks go down: the rule, case by case."""

from __future__ import annotations

from kvstore.node.admission import Admission
from kvstore.node.demotion import chains

ZERO = bytes(32)


def key(name: int) -> bytes:
    return name.to_bytes(32, "big")[::-1]


def choose(admission: Admission, *blocks: tuple[int, int, int, bool], room: int = 0) -> list[int]:
    """Blocks as (name, parent's name or 0, ticket, wanted); answers names."""
    chosen = admission.choose(
        [key(name) for name, _, _, _ in blocks],
        [key(parent) if parent else ZERO for _, parent, _, _ in blocks],
        [ticket for _, _, ticket, _ in blocks],
        [wanted for _, _, _, wanted in blocks],
        room,
    )
    return [blocks[i][0] for i in chosen]


def test_always() -> None:
    assert choose(Admission("always"), (1, 0, 1, False), (2, 0, 2, False)) == [1, 2]


def test_once_is_not_enough_and_wanted_is() -> None:
    admission = Admission("reuse")
    assert choose(admission, (1, 0, 1, False), (2, 0, 2, True)) == [2]
    assert (admission.admitted, admission.passed) == (1, 1)


def test_room_that_nobody_needs_is_used() -> None:
    assert choose(Admission("reuse"), (1, 0, 1, False), (2, 0, 2, False), (3, 0, 3, False), room=2) == [1, 2]


def test_put_again_after_it_was_passed_over() -> None:
    admission = Admission("reuse")
    assert choose(admission, (1, 0, 10, False)) == []
    assert choose(admission, (1, 0, 10, False)) == []  # the same stay in memory is no news
    assert choose(admission, (1, 0, 11, False)) == [1]
    assert choose(admission, (1, 0, 12, False)) == []  # what went down is forgotten again


def test_a_prefix_follows_its_block() -> None:
    admission = Admission("reuse")
    assert choose(admission, (3, 2, 3, True), (9, 8, 9, False)) == [3]
    assert choose(admission, (2, 1, 2, False), (8, 0, 8, False)) == [2]
    assert choose(admission, (1, 0, 1, False)) == [1]


def test_the_ghost_is_bounded() -> None:
    admission = Admission("reuse", ghost_keys_max=2)
    choose(admission, (1, 0, 1, False), (2, 0, 2, False), (3, 0, 3, False))
    assert choose(admission, (1, 0, 11, False)) == []
    assert choose(admission, (3, 0, 13, False)) == [3]


def test_chains_are_in_order_whatever_order_they_came_in() -> None:
    names = [5, 2, 4, 3, 8, 7]
    parents = [4, 1, 3, 2, 7, 3]
    runs = chains([key(n) for n in names], [key(p) for p in parents])
    assert sorted([[names[i] for i in run] for run in runs]) == [[2, 3, 4, 5], [7, 8]]


def test_chains_of_opaque_keys_may_be_circles() -> None:
    runs = chains([key(1), key(2), key(3)], [key(2), key(1), key(3)])
    assert sorted(i for run in runs for i in run) == [0, 1, 2]
