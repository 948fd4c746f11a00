"""The kernel that hashes leaves on a device, compiled as C++ with a thread for each of a block's, against xxhash."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.devices.digests import KERNEL, THREADS, leaf_table
from transfer.devices.memory import DeviceMemory

SHIM = """
#include <barrier>
#include <thread>
#include <vector>
struct Index {{ unsigned x; }};
static thread_local Index threadIdx;
static Index blockIdx;
static std::barrier<>* meeting;
#define __device__ static
#define __global__
#define __shared__ static
static void __syncthreads() {{ meeting->arrive_and_wait(); }}
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}}
#include "{kernel}"
extern "C" void run(const u64* starts, const u32* bytes, u64* digests, u64 count) {{
    for (unsigned block = 0; block * (THREADS / LANES) < count; ++block) {{
        blockIdx.x = block;
        std::barrier<> all(THREADS);
        meeting = &all;
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < THREADS; ++i) {{
            threads.emplace_back([=] {{ threadIdx.x = i; leaf_digests(starts, bytes, digests, count); }});
        }}
        for (auto& one : threads) one.join();
    }}
}}
"""

Hash = Callable[[list[tuple[int, int]]], list[int]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Hash:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernel")
    source, library = folder / "shim.cpp", folder / "shim.so"
    source.write_text(SHIM.format(kernel=KERNEL))
    flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=alignment", "-fno-sanitize-recover", "-static-libubsan"]
    subprocess.run([compiler, *flags, source, "-o", library], check=True, timeout=60)
    loaded = ctypes.CDLL(str(library))

    def run(leaves: list[tuple[int, int]]) -> list[int]:
        starts = np.array([address for address, _ in leaves], np.uint64)
        lengths = np.array([count for _, count in leaves], np.uint32)
        digests = np.full(len(leaves) + THREADS, 7, np.uint64)
        pointers = [ctypes.c_void_p(one.ctypes.data) for one in (starts, lengths, digests)]
        loaded.run(*pointers, ctypes.c_uint64(len(leaves)))
        assert (digests[len(leaves) :] == 7).all(), "written beyond its leaves"
        return [int(digest) for digest in digests[: len(leaves)]]

    return run


def check(kernel: Hash, seed: int, cuts: list[tuple[int, int]]) -> None:
    data = np.random.default_rng(seed).integers(0, 256, 8192, np.uint8)
    base = data.ctypes.data
    wanted = [xxhash.xxh3_64_intdigest(data[offset : offset + count].tobytes()) for offset, count in cuts]
    assert kernel([(base + offset, count) for offset, count in cuts]) == wanted


def test_every_length_where_the_formula_changes(kernel: Hash) -> None:
    borders = (1, 3, 4, 8, 9, 16, 17, 32, 64, 96, 128, 129, 240, 241, 256, 1024, 2048, 4096)
    lengths = sorted({min(4096, max(1, border + step)) for border in borders for step in (-1, 0, 1)})
    check(kernel, 1, [(i % 9, count) for i, count in enumerate(lengths)])


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 4096), st.integers(1, 4096)), min_size=1, max_size=20),
)
def test_any_leaves_at_any_address(kernel: Hash, seed: int, cuts: list[tuple[int, int]]) -> None:
    check(kernel, seed, cuts)


def test_leaves_start_anew_with_each_part() -> None:
    starts, lengths = leaf_table(DeviceMemory(1000, 20_000, 0), [(1, 4097), (5000, 0), (5000, 4096), (19_999, 1)])
    assert starts.tolist() == [1001, 5097, 6000, 20_999]
    assert lengths.tolist() == [4096, 1, 4096, 1]
    with pytest.raises(ValueError, match="beyond"):
        leaf_table(DeviceMemory(1000, 100, 0), [(1, 100)])
