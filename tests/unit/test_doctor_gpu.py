"""What doctor says of GPUs on machines that there are not here: the way that would be used, and why no better one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import doctor
from kvstore.config import Config, NodeConfig, TransferConfig
from kvstore.doctor_gpu import gpu
from kvstore.finding import Finding
from transfer.devices import CudaError, CudaUnavailable, DeviceMemory, Way, WaySettings

BASE = 0x7F00_0000_0000


class Driver:
    devices = 2

    def __init__(self, *, exports: bool = True, full: bool = False) -> None:
        self.exports, self.full = exports, full
        self.fds: list[int] = []

    @contextlib.contextmanager
    def scratch(self, device: int, count: int) -> Iterator[DeviceMemory]:
        if self.full:
            raise CudaError("cuMemAlloc_v2", 2)
        yield DeviceMemory(BASE, count, device)

    def exports_dma_buf(self, device: int) -> bool:
        return self.exports

    def export_dma_buf(self, address: int, count: int) -> int:
        fd, other = os.pipe()
        os.close(other)
        return fd

    def sync_memops(self, address: int) -> None: ...


def machine(root: Path, nics: dict[str, str], *modules: str) -> Path:
    """sysfs with NICs, each with its kernel driver ("": soft-RoCE), and loaded modules."""
    for name, driver in nics.items():
        (root / "class/infiniband" / name / "device").mkdir(parents=True)
        if driver:
            (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
            (root / "class/infiniband" / name / "device/driver").symlink_to(root / "drivers" / driver)
    for module in modules:
        (root / "module" / module).mkdir(parents=True)
    return root


def looked(sysfs: Path, driver: Any, *, cupy: bool = True, kernel: str = "6.1.0") -> Finding:
    there, memory = gpu(sysfs, load=lambda: driver, cupy=lambda: cupy, kernel=kernel)
    assert there == Finding("GPU", "ok", "2 CUDA device(s)")
    assert memory.subject == "GPU memory"
    return memory


def test_without_a_driver() -> None:
    def missing() -> Any:
        raise CudaUnavailable("no NVIDIA driver (libcuda.so.1)")

    (found,) = gpu(Path("/nonexistent"), load=missing)
    assert found.state == "off" and "libcuda" in found.found


def test_the_best_way_there_is(tmp_path: Path) -> None:
    sysfs = machine(tmp_path, {"mlx5_0": "mlx5_core", "mlx5_1": "mlx5_core"}, "nvidia_peermem")
    assert looked(sysfs, Driver()) == Finding("GPU memory", "ok", "NICs reach it by dma-buf")
    second = looked(sysfs, Driver(exports=False))
    assert second.state == "ok" and "by peer memory (dma_buf: the CUDA driver does not export" in second.found
    old = looked(sysfs, Driver(), kernel="5.4.0")
    assert "peer memory (dma_buf: kernel 5.4.0 is older than 5.12" in old.found


def test_as_a_client_with_these_settings_would(tmp_path: Path) -> None:
    sysfs = machine(tmp_path, {"mlx5_0": "mlx5_core"}, "nvidia_peermem")
    blind = looked(sysfs, Driver(), cupy=False)
    assert blind.state == "off" and "by dma-buf, but cupy, to verify what lands in it" in blind.found

    def told(*ways: Way) -> Finding:
        settings = WaySettings(frozenset(ways))
        _, memory = gpu(sysfs, load=Driver, cupy=lambda: True, kernel="6.1.0", ways=settings)  # type: ignore[arg-type]
        return memory

    assert "by peer memory (dma_buf: not allowed by the settings)" in told(Way.PEERMEM, Way.STAGED).found
    assert told(Way.STAGED).state == "slow"
    refused = gpu(
        machine(tmp_path / "other", {}),
        load=Driver,  # type: ignore[arg-type]
        cupy=lambda: True,
        kernel="6.1.0",
        ways=WaySettings(frozenset({Way.DMA_BUF})),
    )[1]
    assert refused.state == "off" and "staged: not allowed by the settings" in refused.found


def test_the_ways_are_those_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[WaySettings] = []
    monkeypatch.setattr(doctor, "gpu", lambda _, *, ways: asked.append(ways) or [])
    nowhere = tmp_path / "nothing"
    chosen = TransferConfig(device_ways=("staged",), device_caller_synchronizes=True)
    home = NodeConfig(data_dir=tmp_path)
    doctor.examine(Config(node=home, transfer=chosen), sysfs=nowhere, proc=nowhere)
    assert asked == [WaySettings(frozenset({Way.STAGED}), caller_synchronizes=True)]
    small = TransferConfig(staging_bytes_max=1 << 16)
    told = doctor.examine(Config(node=home, transfer=small), sysfs=nowhere, proc=nowhere)
    assert any(one.subject == "GPU" and "transfer.staging_bytes_max" in one.found for one in told)


@pytest.mark.parametrize(
    ("nics", "said"),
    [
        ({}, "dma_buf: there is no NIC; peermem: there is no NIC"),
        ({"mlx4_0": "mlx4_core"}, "dma_buf: mlx4_0: the NIC's driver does not support it"),
        ({"mlx4_0": "mlx4_core"}, "peermem: mlx4_0: no peer memory module is loaded"),
        ({"rxe0": ""}, "peermem: rxe0: the NIC's driver does not support it"),
    ],
)
def test_staged_where_no_nic_reaches_it(tmp_path: Path, nics: dict[str, str], said: str) -> None:
    modules = ["nvidia_peermem"] if "rxe0" in nics else []
    sysfs = machine(tmp_path, nics, *modules)
    found = looked(sysfs, Driver())
    assert found.state == "slow" and found.found.startswith("bytes pass through pinned") and said in found.found
    without = looked(sysfs, Driver(), cupy=False)
    assert without.state == "off" and "kvstore[gpu]" in without.advice and said in without.found


def test_a_device_that_is_full(tmp_path: Path) -> None:
    found = looked(machine(tmp_path, {}), Driver(full=True))
    assert found.state == "off" and "cuMemAlloc_v2: CUDA error 2" in found.found
