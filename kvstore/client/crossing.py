"""Device memory into slots that this process maps: through staging buffers, a window of bytes each, several at once.

  blocks    |-------b0-------|-------b1-------|-------b2-------|    laid end to end: *positions*
  pieces    |--p0--|---p1----|--p0--|---p1----|--p0--|---p1----|    where the caller has them, on devices or not
  windows   |-----w0-----|-----w1-----|-----w2-----|-----w3----|    what a staging buffer holds

Rules
- A slot is written by this process alone, never by a device: what a window has is copied into it when the device's
  copies are over. So a device that hangs poisons a staging buffer and the caller's memory, and no slot.
- Leaves are hashed by who seals the slots, where they lie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import native
from transfer.devices.crossing import uncancelled

if TYPE_CHECKING:
    from kvstore.client.buffers import Places
    from transfer.devices import Stager
    from transfer.devices.crossing import Crossing

__all__ = ["Copy", "Window", "fill", "windows_of"]

Bytes = npt.NDArray[np.uint8]


class Copy(NamedTuple):
    """`length` bytes from `address`, of this device or (None) of the host, to `at` in the buffer."""

    device: int | None
    address: int
    length: int
    at: int


class Window(NamedTuple):
    """`bytes` from `position` on."""

    position: int
    bytes: int
    copies: list[Copy]


def windows_of(places: Places, buffer_bytes: int) -> list[Window]:
    """Pure."""
    lengths = places.lengths.astype(np.int64)
    if len(lengths) != len(places.addresses):
        lengths = np.resize(lengths, len(places.addresses))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    addresses, which = places.addresses.astype(np.int64), _memories(places)
    devices = [memory.device for memory in places.memories]
    found: list[Window] = []
    total = int(ends[-1]) if len(ends) else 0
    for low in range(0, total, buffer_bytes):
        high = min(low + buffer_bytes, total)
        rows = slice(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(starts, high, "left")))
        begins, stops = np.maximum(starts[rows], low), np.minimum(ends[rows], high)
        at = addresses[rows] + begins - starts[rows]
        columns = (which[rows], at, stops - begins, begins - low)
        found.append(Window(low, high - low, list(_joined(devices, *(column.tolist() for column in columns)))))
    return found


def _memories(places: Places) -> npt.NDArray[np.int64]:
    """In which of the memories each piece lies, as far as its device goes: those that overlap are of one device."""
    starts = np.array([memory.address for memory in places.memories], np.int64)
    order = np.argsort(starts, kind="stable")
    row = np.searchsorted(starts[order], places.addresses.astype(np.int64), side="right") - 1
    found: npt.NDArray[np.int64] = order[row]
    return found


def _joined(
    devices: Sequence[int | None], which: list[int], at: list[int], lengths: list[int], into: list[int]
) -> Iterator[Copy]:
    """Pieces of one memory that follow one another are one copy."""
    former: Copy | None = None
    memory = -1
    for index, address, length, place in zip(which, at, lengths, into, strict=True):
        if former is not None and index == memory and former.address + former.length == address:
            former = former._replace(length=former.length + length)
            continue
        if former is not None:
            yield former
        former, memory = Copy(devices[index], address, length, place), index
    if former is not None:
        yield former


async def fill(stager: Stager, places: Places, targets: Sequence[Bytes]) -> None:
    """Every block into its target, of one size all. Raises RegionPoisoned, LimitReached, and what a device says; when
    it raises or is cancelled nothing of it touches memory any more, but for what RegionPoisoned is about.
    """
    size = targets[0].nbytes if targets else 0

    async def carry(crossing: Crossing, window: Window) -> None:
        host = crossing.host[: window.bytes]
        for copy in window.copies:
            if copy.device is not None:
                await crossing.to_host(copy.device, host[copy.at : copy.at + copy.length], copy.address)
        await crossing.drained()
        await uncancelled(asyncio.to_thread(partial(_store, window, host, targets, size)))

    await stager.cross(windows_of(places, stager.pool.buffer_bytes), carry)


def _store(window: Window, host: Bytes, targets: Sequence[Bytes], size: int) -> None:
    """From a buffer, and from the caller's host memory, into the slots."""
    for copy in window.copies:
        if copy.device is None:
            native.copy_bytes(host[copy.at : copy.at + copy.length], _at(copy.address, copy.length))
    done = 0
    while done < window.bytes:
        block, into = divmod(window.position + done, size)
        length = min(size - into, window.bytes - done)
        native.copy_bytes(targets[block][into : into + length], host[done : done + length])
        done += length


class _Raw:
    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, length: int) -> None:
        self.__array_interface__ = {"version": 3, "data": (address, True), "shape": (length,), "typestr": "|u1"}


def _at(address: int, length: int) -> Bytes:
    """Raw memory, which its owner, one of the call's places, keeps."""
    return np.asarray(_Raw(address, length))
