"""How a queue pair of pyverbs's ends natively: once, whoever closes what it is of afterwards."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("pyverbs.device", reason="no pyverbs here: make setup-rdma", exc_type=ImportError)

from tests.rdma.rails import Rail
from transfer.native import rdma_destroy
from transfer.rdma.verbs import Device


def test_a_queue_pair_ends_once(rail: Rail, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def destroy(address: int) -> None:
        ended.append(address)
        rdma_destroy(address)

    monkeypatch.setattr("transfer.rdma.verbs.rdma_destroy", destroy)
    device = Device(rail.near, 64)
    ended.clear()  # a domain looks at one of its own first
    pairs = [device.domain.queue_pair(4) for _ in range(3)]
    for pair in pairs[:2]:
        pair.close()
    assert ended == [pair.address for pair in pairs[:2]]  # not by pyverbs, which would hold the interpreter
    pairs[0].held.close()  # type: ignore[attr-defined]
    # A domain with a queue pair is busy; pyverbs ends the one that is left, and no other.
    device.close()
    del pair, pairs
    gc.collect()
    assert len(ended) == 2


def test_one_that_cannot_end_is_still_pyverbss(rail: Rail, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int) -> None:
        raise OSError(16, "busy")

    device = Device(rail.near, 64)
    pair = device.domain.queue_pair(4)
    with monkeypatch.context() as patched:
        patched.setattr("transfer.rdma.verbs.rdma_destroy", refuse)
        with pytest.raises(OSError, match="busy"):
            pair.close()
    pair.close()
    device.close()
