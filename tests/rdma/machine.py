"""What these tests need of a machine: software RDMA devices in pairs, rxe_aN joined to rxe_bN by a virtual cable."""

from __future__ import annotations

import pytest

from transfer.rdma import unavailable
from transfer.rdma.verbs import device_names

__all__ = ["needs_rails"]


def needs_rails(count: int) -> pytest.MarkDecorator:
    """Skips where there are fewer; the VM of `make test-rdma` has them."""
    wanted = [f"rxe_{side}{i}" for i in range(count) for side in "ab"]
    missing = [name for name in wanted if name not in device_names()]
    why = f"no device {missing[0]} in /sys/class/infiniband" if missing else unavailable()
    return pytest.mark.skipif(bool(why), reason=f"no RDMA rails here: {why}")
