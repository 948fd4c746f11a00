"""Few bytes of a node of another machine are read in the calling thread, whatever else goes by the transports' loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import Client, Extents, Namespace
from kvstore.client.ways import Ways
from tests.integration.nodes import NodeProcess, blocks_of, layout, tokens
from transfer.errors import PeerUnreachable
from transfer.paths import Connection


@pytest.fixture
def ns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    monkeypatch.setattr("transfer.offers.Home.same_files", lambda *_: False)
    with NodeProcess(tmp_path, address="127.0.0.1:0") as node, Client(str(node.facts["address"])) as client:
        yield client.namespace(layout())


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come within AT_ONCE_S goes by the loop, as on a machine that is busy for a moment."""
    monkeypatch.setattr("kvstore.client.at_once.AT_ONCE_S", 10.0)


@pytest.fixture
def by_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each read that went there, how many blocks."""
    told: list[int] = []
    read = Ways.read

    async def counted(self: Ways, reached: Any, lease: Any, *more: Any, **named: Any) -> Any:
        told.append(len(lease.offsets))
        return await read(self, reached, lease, *more, **named)

    monkeypatch.setattr(Ways, "read", counted)
    return told


def test_few_bytes_take_no_other_thread(ns: Namespace, by_the_loop: list[int]) -> None:
    chain = ns.chain(tokens(4))
    expected = blocks_of(chain)
    ns.put(chain, expected)
    into = np.zeros_like(expected)
    assert ns.get(chain[:1], into[:1]).blocks == 1 and by_the_loop == []
    assert ns.get(chain, into).blocks == 4 and by_the_loop == [4]
    assert np.array_equal(into, expected)


def test_a_block_in_pieces_of_several_memories(ns: Namespace, by_the_loop: list[int]) -> None:
    chain = ns.chain(tokens(1))
    expected = blocks_of(chain).reshape(-1)
    ns.put(chain, expected)
    cut = 40_001
    back, front = bytearray(len(expected) - cut + 3), np.zeros(cut, np.uint8)
    table = np.array([[(1, 0, cut), (0, 3, len(expected) - cut)]], dtype=np.int64)
    assert ns.get(chain, Extents([back, front], table)).blocks == 1 and by_the_loop == []
    assert np.array_equal(front, expected[:cut]) and back[3:] == expected[cut:].tobytes()


@pytest.mark.parametrize("fails", [PeerUnreachable("gone"), None])
def test_what_fails_at_once_is_asked_for_as_everything_is(
    ns: Namespace, by_the_loop: list[int], fails: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = ns.chain(tokens(1))
    expected = blocks_of(chain)
    ns.put(chain, expected)

    def failing(*_: object, **__: object) -> None:
        if fails is not None:
            raise fails

    monkeypatch.setattr(Connection, "read_at_once", failing)
    into = np.zeros_like(expected)
    assert ns.get(chain, into).blocks == 1 and by_the_loop == [1]
    assert np.array_equal(into, expected)


def test_many_threads_at_once(ns: Namespace, by_the_loop: list[int]) -> None:
    chains = [ns.chain(tokens(1, seed)) for seed in range(4)]
    for chain in chains:
        ns.put(chain, blocks_of(chain))
    wrong: list[object] = []

    def gets(first: int) -> None:
        into = np.zeros_like(blocks_of(chains[0]))
        for turn in range(100):
            into[:] = 0
            chain = chains[(first + turn) % len(chains)]
            got = ns.get(chain, into)
            if got.blocks != 1 or not np.array_equal(into, blocks_of(chain)):
                wrong.append(got)

    threads = [threading.Thread(target=gets, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
