"""How the two sides' devices make rails."""

from __future__ import annotations

from transfer.rdma.lanes import pairing


def test_rails_pair_devices_in_order() -> None:
    assert pairing(2, 2, 16) == [(0, 0), (1, 1)]
    assert pairing(1, 3, 16) == [(0, 0), (0, 1), (0, 2)]
    assert pairing(3, 2, 16) == [(0, 0), (1, 1), (2, 0)]
    assert pairing(4, 4, 2) == [(0, 0), (1, 1)]
    assert pairing(0, 2, 16) == []
