"""`python -m bench.rdma_grants_inside LIBRARY ROUNDS CUTS OUT`: what bench/rdma_grants.py measures, with a rail.

Writes a JSON object to OUT.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rdma.rails import Rail
from transfer.rdma.lanes import connect_pair
from transfer.rdma.verbs import Device, Domain, QueuePair

KIB, MIB = 1 << 10, 1 << 20
WHOLE = 65 * MIB
# Bytes of a range, ranges of a grant.
GRANTS = {
    "4 KiB": (4 * KIB, 1),
    "2 MiB": (2 * MIB, 1),
    "64 MiB": (64 * MIB, 1),
    "64 x 64 KiB": (64 * KIB, 64),
}
DEPTH = 128
TIMERS = 14, 6  # timeout and retries of a queue pair
PAGE, SLOTS = 4 * KIB, 16
REFUSED = 10  # IBV_WC_REM_ACCESS_ERR
REGION, WINDOW = 0, 1


def loaded(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    u64, i32, u32, at = ctypes.c_uint64, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
    for name, given, told in (
        ("grants_whole", (at, at, u64), at),
        ("grants_let_go", (at,), i32),
        ("grants_regions", (at, u64, u64, u64, i32, i32, at), i32),
        ("grants_windows", (at, at, u64, u64, u64, i32, i32, at), i32),
        ("grants_open", (at, at, u64, u64, i32, at), at),
        ("grants_close", (at, at, i32), i32),
        ("grants_drop", (at, i32), i32),
        ("grants_read", (at, u64, u32, u64, u32, u32), i32),
        ("grants_late", (at, u64, u32, i32, at, at, at, u32, i32, u32), i32),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = given, told
    return library


class Rig:
    """Memory of an owner (the far device) and of a reader (the near one), and queue pairs between them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = library
        rail = Rail(0)
        self.reader, self.owner = Device(rail.near, 4 * DEPTH), Device(rail.far, 4 * DEPTH)
        self.memory, self.into = mmap.mmap(-1, WHOLE), mmap.mmap(-1, MIB)
        self.memory[:] = b"\x11" * WHOLE
        self.address, self.into_at = (self._where(memory) for memory in (self.memory, self.into))
        with self.pair() as (near, far):
            self.whole = self._made(library.grants_whole(far.address, self.address, WHOLE))
            self.mine = self._made(library.grants_whole(near.address, self.into_at, MIB))
        self.local_key = ctypes.c_uint32.from_address(self.mine + 36).value  # ibv_mr: 4 pointers, handle, lkey, rkey

    @staticmethod
    def _where(memory: mmap.mmap) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    @staticmethod
    def _made(address: int | None) -> int:
        if not address:
            raise RuntimeError("the device refuses it")
        return address

    @contextmanager
    def pair(self, domain: Domain | None = None) -> Iterator[tuple[QueuePair, QueuePair]]:
        """Connected; the reader's first. domain: another of the owner's."""
        reader, owner = self.reader, self.owner
        sides = [(reader, reader.domain.queue_pair(DEPTH)), (owner, (domain or owner.domain).queue_pair(DEPTH))]
        offers = [device.offer() for device, _ in sides]
        try:
            for i, (device, pair) in enumerate(sides):
                theirs, peer = offers[1 - i], sides[1 - i][1]
                where = (theirs.gid, theirs.lid), (peer.number, 0), 0, min(one.mtu for one in offers)
                reads = min(one.reads for one in offers)
                connect_pair(pair, offers[i], device.gid_index, *where, reads, timers=TIMERS, serving=True)
            yield sides[0][1], sides[1][1]
        finally:
            for _, pair in sides:
                pair.close()

    def close(self) -> None:
        for one in (self.whole, self.mine):
            self.calls.grants_let_go(one)
        for device in (self.reader, self.owner):
            device.close()

    def medians(self, call: Callable[..., int], rounds: int, *given: int) -> list[float]:
        """us of granting, of revoking."""
        taken = (ctypes.c_uint64 * (2 * rounds))()
        error = call(*given, rounds, taken)
        if error:
            raise OSError(error, f"{call.__name__}{given}")
        return [statistics.median(taken[i::2]) / 1000 for i in range(2)]

    def costs(self, rounds: int) -> dict[str, dict[str, list[float]]]:
        """By turns; us of granting and of revoking, each turn's median."""
        taken: dict[str, dict[str, list[float]]] = {}
        with self.pair() as (_, far):
            for name, (count_bytes, count) in GRANTS.items():
                of = taken[name] = {"regions": [], "windows": []}
                ranges = self.address + PAGE, count_bytes, 2 * count_bytes if count > 1 else 0, count
                for _ in range(7):
                    region = self.medians(self.calls.grants_regions, rounds, far.address, *ranges)
                    window = self.medians(self.calls.grants_windows, rounds, far.address, self.whole, *ranges)
                    of["regions"].append(sum(region))
                    of["windows"].append(sum(window))
        return taken

    def read(self, near: QueuePair, key: int, at: int) -> int:
        found: int = self.calls.grants_read(near.address, self.into_at, self.local_key, at, key, PAGE)
        return found

    def refused(self, way: int) -> dict[str, bool]:
        """Whether reads are refused; all but the first should be."""
        granted, key = self.address + PAGE, ctypes.c_uint32()
        library, said = self.calls, {}
        for name in ("granted", "outside", "another connection's", "taken back"):
            with self.pair() as (near, far):
                at = (far.address, self.whole, granted, PAGE, way, ctypes.addressof(key))
                grant = self._made(library.grants_open(*at))
                status = -1
                if name == "another connection's":
                    # Regions have a protection domain for each connection, windows a queue pair.
                    other = Domain(self.owner) if way == REGION else None
                    with self.pair(other) as (stranger, _):
                        status = self.read(stranger, key.value, granted)
                    if other is not None:
                        other.close()
                elif name == "taken back":
                    library.grants_close(far.address, grant, way)
                    grant, status = 0, self.read(near, key.value, granted)
                else:
                    status = self.read(near, key.value, granted + (16 * PAGE if name == "outside" else 0))
                if status not in (0, REFUSED):
                    raise RuntimeError(f"{name}: completion status {status}")
                said[name] = status == REFUSED
                if grant:
                    library.grants_drop(grant, way)
        return said

    def late(self, way: int, cuts: int) -> list[int]:
        """Of each grant that was taken back while it was read: reads that brought what was written afterwards."""
        found = []
        for cut in range(cuts):
            with self.pair() as (near, far):
                page, wait_us = self.address + PAGE, 2000 + 37 * cut % 3000
                where = near.address, self.into_at, self.local_key, SLOTS
                found.append(self.calls.grants_late(*where, far.address, self.whole, page, PAGE, way, wait_us))
        return found


def main() -> None:
    library, rounds, cuts, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    rig = Rig(loaded(library))
    ways = {"regions": REGION, "windows": WINDOW}
    found: dict[str, object] = {"refused": {name: rig.refused(way) for name, way in ways.items()}}
    found["costs"] = rig.costs(rounds)
    found["late"] = {name: rig.late(way, cuts) for name, way in ways.items()}
    rig.close()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
