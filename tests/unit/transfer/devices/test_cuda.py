"""The CUDA driver's calls, against a library with the same signatures compiled here: arguments arrive whole."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from transfer.devices.base import CudaError
from transfer.devices.cuda import CudaUnavailable, LibCuda, load_cuda

# As in cuda.h. Addresses above 4 GiB, so that an argument cut to 32 bits is seen.
DRIVER = """
#include <stddef.h>
#include <string.h>
typedef unsigned long long CUdeviceptr;
static const CUdeviceptr BASE = 0x7F0000200000ull;
static int here, depth, synced;
#define CONTEXT ((void*)0x7F1234567890ull)
int cuInit(unsigned flags) { return flags ? 1 : STARTS; }
int cuDeviceGetCount(int* count) { *count = DEVICES; return 0; }
int cuDeviceGet(int* device, int ordinal) { if (ordinal >= DEVICES) return 101; *device = ordinal + 40; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 41) return 101;
    *value = attribute == 124;
    return 0;
}
int cuDeviceGetPCIBusId(char* text, int length, int device) {
    if (length < 13 || device != 41) return 1;
    strcpy(text, "0000:3B:00.0");
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device != 41 || here++) return 201;
    *context = CONTEXT;
    return 0;
}
int cuCtxPushCurrent_v2(void* context) { if (context != CONTEXT) return 201; ++depth; return 0; }
int cuCtxPopCurrent_v2(void** context) { if (!depth) return 201; --depth; *context = CONTEXT; return 0; }
static int allocated;
int cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
    if (!depth || size != 5ull << 32 || allocated++) return 2;
    *address = BASE;
    return 0;
}
int cuMemFree_v2(CUdeviceptr address) { if (!depth || address != BASE || !allocated--) return 1; return 0; }
int cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
    if (!depth || address < BASE) return 1;
    *base = BASE;
    *size = 5ull << 32;
    return 0;
}
int cuPointerGetAttribute(void* data, int attribute, CUdeviceptr address) {
    if (address < BASE) return 1;
    *(int*)data = attribute == 9 ? 1 : -1;
    return 0;
}
int cuPointerSetAttribute(const void* value, int attribute, CUdeviceptr address) {
    if (!depth || address < BASE || attribute != 6 || *(const unsigned*)value != 1) return 801;
    synced = 1;
    return 0;
}
#ifdef EXPORTS
int cuMemGetHandleForAddressRange(void* handle, CUdeviceptr address, size_t size, int type, unsigned long long flags) {
    if (!depth || address != BASE || size != 5ull << 32 || type != 1 || flags) return 1;
    *(int*)handle = 33;
    return 0;
}
#endif
int state(void) { return depth * 2 + synced; }
"""
BASE = 0x7F0000200000


def build(folder: Path, **defined: int) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "driver.c", folder / "driver.so"
    source.write_text(DRIVER)
    flags = [f"-D{name}={value}" for name, value in {"STARTS": 0, "DEVICES": 2, **defined}.items()]
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", *flags, source, "-o", library], check=True)
    return library


def test_every_call(tmp_path: Path) -> None:
    driver = load_cuda(str(build(tmp_path, EXPORTS=1)))
    assert driver.devices == 2
    assert driver.device_of(BASE + 7) == 1
    assert driver.address_range(BASE + 7) == (BASE, 5 << 32)
    assert driver.exports_dma_buf(1)
    assert driver.export_dma_buf(BASE, 5 << 32) == 33
    assert driver.pci_address(1) == "0000:3b:00.0"
    for _ in range(2):  # freed each time
        with driver.scratch(1, 5 << 32) as memory:
            assert (memory.address, memory.bytes, memory.device) == (BASE, 5 << 32, 1)
    driver.sync_memops(BASE)
    assert driver._library.state() == 1, "the caller's context is put back"


def test_errors_name_the_call_and_put_the_context_back(tmp_path: Path) -> None:
    driver = load_cuda(str(build(tmp_path, EXPORTS=1)))
    with pytest.raises(CudaError, match="cuMemGetHandleForAddressRange: CUDA error 1") as raised:
        driver.export_dma_buf(BASE, 4096)
    assert raised.value.code == 1
    with pytest.raises(CudaError, match="cuDeviceGet: CUDA error 101"):
        driver.exports_dma_buf(2)
    assert driver._library.state() == 0


def test_a_driver_that_cannot_export(tmp_path: Path) -> None:
    driver = load_cuda(str(build(tmp_path)))
    assert not driver.exports_dma_buf(1)
    with pytest.raises(CudaError, match="801"):
        driver.export_dma_buf(BASE, 5 << 32)


def test_why_there_is_no_cuda(tmp_path: Path) -> None:
    with pytest.raises(CudaUnavailable, match=r"no NVIDIA driver \(missing-libcuda"):
        load_cuda("missing-libcuda.so.1")
    with pytest.raises(CudaUnavailable, match="a device is not"):
        load_cuda(str(build(tmp_path, DEVICES=0)))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CudaUnavailable, match="cuInit: CUDA error 100"):
        load_cuda(str(build(other, STARTS=100)))
    with pytest.raises(CudaUnavailable, match="too old"):
        load_cuda("libm.so.6")


def test_libcuda_is_what_reach_asks_for() -> None:
    from transfer.devices.base import CudaDriver

    checked: type[CudaDriver] = LibCuda  # mypy's to judge
    assert checked is LibCuda
