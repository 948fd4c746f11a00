"""Device memory: taken from arrays, brought within a NIC's reach, staged where none reaches it, and hashed in place."""

from __future__ import annotations

from transfer.devices.base import CudaDriver, CudaError, DmaBuf, Nic
from transfer.devices.crossing import Stager
from transfer.devices.cuda import CudaUnavailable, LibCuda, load_cuda
from transfer.devices.memory import DeviceMemory, device_memory
from transfer.devices.staging import StagingPool
from transfer.devices.ways import NoWay, Reached, Way, WaySettings, reach

__all__ = [
    "CudaDriver",
    "CudaError",
    "CudaUnavailable",
    "DeviceMemory",
    "DmaBuf",
    "LibCuda",
    "Nic",
    "NoWay",
    "Reached",
    "Stager",
    "StagingPool",
    "Way",
    "WaySettings",
    "device_memory",
    "load_cuda",
    "reach",
]
