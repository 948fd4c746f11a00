"""A simulated device for a client's tests, and what they do with it."""

from __future__ import annotations

import numpy as np

from kvstore.config import TransferConfig
from transfer.testing.device import DeviceArray, SimulatedDevice

LAYERS = 4
SMALL = TransferConfig(staging_bytes_max=512 << 10, staging_buffer_bytes=64 << 10)  # many windows, few buffers
QUIESCE_S = 0.4
Bytes = np.ndarray


def holding(device: SimulatedDevice, data: Bytes, before: int = 0, behind: int = 0) -> tuple[DeviceArray, Bytes]:
    """Device memory of these bytes, and as much around it as is asked for, of 0xAA."""
    array, content = device.array(before + data.nbytes + behind)
    content[:] = 0xAA
    content[before : before + data.nbytes] = data.reshape(-1)
    return array, content
