"""Claims told from what is held, and copies counted: of everything or of a fair sample, over nodes and over hosts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from kvstore.admin import copies
from kvstore.wire import admin

NS = b"n" * 32


def node(number: int, host: str = "") -> admin.NodeRow:
    return admin.NodeRow(name=f"n{number}", id=bytes([number]) * 16, address=f"h:{number}", host=host)


def has(number: int, host: str = "", **tiers: Sequence[int]) -> admin.NodeAnswer:
    """Of each tier the bitmap of shards by block."""
    count = len(next(iter(tiers.values()), ()))
    blocks = [
        admin.BlockPlaces(**{f"{tier}_shards": bitmaps[at] for tier, bitmaps in tiers.items()}) for at in range(count)
    ]
    located = admin.LocateResponse(blocks=blocks)
    return admin.NodeAnswer(node=node(number, host), answer=admin.Answer(locate=located))


def claims(number: int, shards: Sequence[int], tiers: Sequence[int]) -> admin.NodeClaims:
    return admin.NodeClaims(node=bytes([number]) * 16, shards=np.array(shards, "<u8").tobytes(), tiers=bytes(tiers))


def located(blocks: int, *claimed: admin.NodeClaims) -> admin.LocateResponse:
    return admin.LocateResponse(blocks=[admin.BlockPlaces(key=bytes([i]) * 32) for i in range(blocks)], claims=claimed)


def test_a_claim_is_a_hint() -> None:
    told = [
        has(1, memory=[1, 1, 0, 0], file=[0, 1, 0, 0]),
        has(2),  # the namespace is not open there: it holds nothing
        admin.NodeAnswer(node=node(3), problem="no answer within 2 s"),
        has(4, memory=[0, 0, 0, 2]),
    ]
    directory = located(4, claims(1, [1, 1, 1, 0], [1, 1, 2, 0]), claims(3, [1, 1, 0, 0], [2, 2, 0, 0]))
    found = copies.holders(directory, told)
    assert [(row["node"], row["shard"], row["first"], row["count"], row["claimed"], row["held"]) for row in found] == [
        ("n1", 0, 0, 1, "memory", ["memory"]),
        ("n3", 0, 0, 2, "file", None),
        ("n1", 0, 1, 1, "memory", ["memory", "file"]),
        ("n1", 0, 2, 1, "file", []),
        ("n4", 1, 3, 1, None, ["memory"]),
    ]
    shown = [(row["blocks"], row["claimed"], row["held"]) for row in copies.holders_shown(found)]
    assert shown[1] == ("0-1", "file", "no answer") and shown[3] == ("2", "file", "no")
    assert copies.located_told(4, found) == (
        "4 blocks: held by some node: 3, the first 2 without a hole; claimed by a node that has them not: 1; "
        "held by a node that is not named for them: 1"
    )


def test_packs_are_claimed_by_nobody() -> None:
    found = copies.holders(located(1), [has(1, object=[1])])
    assert [(row["claimed"], row["held"]) for row in found] == [(None, ["object"])]
    assert copies.located_told(1, found).endswith("not named for them: 0")


@pytest.mark.parametrize(
    ("held", "nodes", "hosts"),
    [
        ([], 0, 0),
        ([(0, 0)], 0, 0),
        ([(0, 1)], 1, 1),
        ([(0, 1), (1, 1)], 2, 1),  # two nodes of one machine
        ([(0, 1), (1, 1), (2, 1)], 3, 2),
        ([(0, 3), (2, 1)], 1, 1),  # the second shard is there once
        ([(0, 1), (2, 2)], 1, 1),  # each shard at its own node
    ],
)
def test_a_block_has_as_many_copies_as_its_rarest_shard(held: list[tuple[int, int]], nodes: int, hosts: int) -> None:
    assert copies.fewest(held, range(3)) == nodes
    assert copies.fewest(held, ["one", "one", "two"]) == hosts


def test_of_a_prompt() -> None:
    told = [has(1, "one", memory=[1, 1, 0]), has(2, "one", file=[1, 0, 0]), has(3, "two", memory=[1, 0, 0])]
    told += [has(4, object=[1, 1, 1])]
    rows = [(row["copies"], row["on_hosts"], row["on_nodes"]) for row in copies.of_chain(told)]
    assert rows == [(0, 1, 1), (1, 1, 1), (2, 1, 0), (3, 0, 1)]


def holds(number: int, host: str, keys: Mapping[bytes, int], most: int) -> admin.NodeAnswer:
    """What a node says that holds these blocks, and tells of so many."""
    ordered = sorted(keys)
    below = int.from_bytes(ordered[most][:8], "big") if len(ordered) > most else 0
    chosen = [key for key in ordered if not below or int.from_bytes(key[:8], "big") < below]
    held = admin.HoldingsResponse(
        namespaces=[admin.NamespaceHeld(digest=NS, tenant="acme", model="m", blocks=len(keys))],
        keys=b"".join(chosen),
        places=np.zeros(len(chosen), "<u2").tobytes(),
        shards=np.array([keys[key] for key in chosen], "<u8").tobytes(),
        below=below,
    )
    return admin.NodeAnswer(node=node(number, host), answer=admin.Answer(holdings=held))


def world(seed: int, count: int) -> tuple[list[dict[bytes, int]], dict[int, int]]:
    """Four nodes, and how many blocks have how many copies on them."""
    rng = random.Random(seed)
    nodes: list[dict[bytes, int]] = [{} for _ in range(4)]
    counted: dict[int, int] = {}
    for _ in range(count):
        those = rng.sample(range(4), rng.choice((1, 1, 1, 2, 3)))
        key = rng.randbytes(16)
        for each in those:
            nodes[each][key] = 1
        counted[len(those)] = counted.get(len(those), 0) + 1
    return nodes, counted


def test_everything_is_counted_where_everything_is_told() -> None:
    nodes, counted = world(1, 500)
    found = copies.of_holdings([holds(i, f"h{i}", keys, 1000) for i, keys in enumerate(nodes)])
    assert found.exact and found.share == 1.0
    assert {row["copies"]: row["on_nodes"] for row in found.rows} == counted
    assert all(row["on_hosts"] == row["on_nodes"] and row["tenant"] == "acme" for row in found.rows)


def test_a_sample_is_fair_and_says_how_large_it_is() -> None:
    """Nodes tell of different shares; only what all of them would have told of counts, or copies would be missed."""
    nodes, counted = world(2, 20_000)
    told = [holds(i, f"h{i}", keys, (400, 4000, 1500, 10**6)[i]) for i, keys in enumerate(nodes)]
    found = copies.of_holdings([*told, admin.NodeAnswer(node=node(9), problem="dead")])
    assert not found.exact and 0.02 < found.share < 0.1
    sampled = {int(str(row["copies"])): int(str(row["on_nodes"])) for row in found.rows}
    assert sum(sampled.values()) == pytest.approx(20_000 * found.share, rel=0.15)
    for number, count in counted.items():
        assert sampled[number] / sum(sampled.values()) == pytest.approx(count / 20_000, abs=0.06)


def test_nobody_holds_anything() -> None:
    found = copies.of_holdings([admin.NodeAnswer(node=node(1), answer=admin.Answer(holdings=admin.HoldingsResponse()))])
    assert (found.rows, found.exact) == ([], True)
    assert copies.of_chain([]) == []
