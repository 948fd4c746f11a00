"""What counts the CPU of RDMA requests: every batch is the requests that it is meant to be, and each ends."""

from __future__ import annotations

import pytest

from bench.rdma_cost import KIB, Rig, Unavailable, stub


def test_batches_are_their_requests() -> None:
    try:
        library = stub()
    except Unavailable as error:
        pytest.skip(str(error))
    for length, requests in ((4 * KIB, 32), (64 * KIB, 100)):
        rig = Rig(library, length, requests)
        whole, engines = rig.us(7)  # raises where the engine counted others
        assert whole > 0 and engines > 0
        assert rig.engine.stats() == (7 * requests, 7 * requests * length, 0, 0)
