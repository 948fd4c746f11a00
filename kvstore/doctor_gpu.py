"""What `kvstore doctor` says about GPUs: how many there are, by which way their memory would be reached, and why by no
better one.

The driver's half is tried for real, on a scratch allocation. The NICs' half is what their kernel drivers and modules
are known for: opening a NIC takes pyverbs, which is not imported here (kvstore.doctor_rdma). Said is what a client with
these settings would do: without cupy it can neither stage nor verify what it gets.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.finding import Finding
from transfer.devices import (
    CudaError,
    CudaUnavailable,
    DmaBuf,
    LibCuda,
    NoWay,
    Reached,
    Way,
    WaySettings,
    load_cuda,
    reach,
)

SCRATCH_BYTES = 2 << 20
PEERMEM = ("nvidia_peermem", "nv_peer_mem")
TAKES_DMA_BUF = frozenset({"mlx5_core", "efa", "ice"})  # ice: irdma's
STAGED = "bytes pass through pinned host memory"


@dataclass(frozen=True, slots=True)
class KnownNic:
    """A transfer.devices.base.Nic that registers nothing and says what the real one would."""

    name: str
    dma_buf: int  # the errno of trying, 0 where it works
    peermem: int

    def register_dma_buf(self, part: DmaBuf, address: int) -> int:
        del part, address
        return self._said(self.dma_buf)

    def register_address(self, address: int, count: int) -> int:
        del address, count
        return self._said(self.peermem)

    def deregister(self, handle: int) -> None:
        """Nothing was registered."""

    def _said(self, error: int) -> int:
        if error:
            raise OSError(error, os.strerror(error))
        return 1


def known_nics(sysfs: Path) -> list[KnownNic]:
    loaded = any((sysfs / "module" / name).exists() for name in PEERMEM)
    found: list[KnownNic] = []
    for path in sorted((sysfs / "class/infiniband").glob("*")):
        driver = path / "device/driver"
        name = driver.resolve().name if driver.exists() else ""  # soft-RoCE has no device
        dma_buf = 0 if name in TAKES_DMA_BUF else errno.EOPNOTSUPP
        peermem = errno.EOPNOTSUPP if not name else 0 if loaded else errno.EFAULT
        found.append(KnownNic(path.name, dma_buf, peermem))
    return found


def gpu(
    sysfs: Path,
    *,
    load: Callable[[], LibCuda] = load_cuda,
    cupy: Callable[[], bool] = lambda: importlib.util.find_spec("cupy") is not None,
    kernel: str = "",
    ways: WaySettings | None = None,
) -> list[Finding]:
    """No framework is imported."""
    try:
        driver = load()
    except CudaUnavailable as error:
        return [Finding("GPU", "off", str(error), "only needed for device memory; nvidia-smi; containers: --gpus all")]
    found = [Finding("GPU", "ok", f"{driver.devices} CUDA device(s)")]
    try:
        with driver.scratch(0, SCRATCH_BYTES) as memory:
            reached = reach(memory, known_nics(sysfs), driver, ways or WaySettings(), kernel=kernel)
    except NoWay as error:
        return [*found, Finding("GPU memory", "off", f"refused: {error}", "transfer.device_ways")]
    except CudaError as error:
        return [*found, Finding("GPU memory", "off", f"cannot be tried: {error}", "nvidia-smi; is the device full?")]
    return [*found, _told(reached, cupy())]


def _told(reached: Reached, cupy: bool) -> Finding:
    subject, why = "GPU memory", "; ".join(reached.why)
    if reached.way is not Way.STAGED:
        told = "NICs reach it by dma-buf" if reached.way is Way.DMA_BUF else f"NICs reach it by peer memory ({why})"
        if cupy:
            return Finding(subject, "ok", told)
        advice = "pip install kvstore[gpu] (cupy)"
        return Finding(subject, "off", f"{told}, but cupy, to verify what lands in it, is not installed", advice)
    if not cupy:
        advice = "pip install kvstore[gpu] (cupy): it gives the pinned memory"
        return Finding(subject, "off", f"no NIC reaches it ({why}), and cupy, to stage it, is not installed", advice)
    advice = "a NIC that takes dma-bufs with NVIDIA's open kernel modules, or modprobe nvidia_peermem"
    return Finding(subject, "slow", f"{STAGED} ({why})", advice)
