"""Callers' memory as transports are told of it: pieces that lie together as one, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvstore.client.buffers import Memory
from transfer.devices import DeviceMemory
from transfer.regions import owner_of

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["At", "Span", "array_of", "device_of", "spans_of"]


class Span(NamedTuple):
    start: int
    end: int
    memories: list[Memory]
    device: int | None = None


class At:
    """Raw memory as numpy takes it. Keeps what it lies in."""

    __slots__ = ("__array_interface__", "_memories")

    def __init__(self, span: Span, writable: bool) -> None:
        self._memories = span.memories
        self.__array_interface__ = {
            "version": 3,
            "data": (span.start, not writable),
            "shape": (span.end - span.start,),
            "typestr": "|u1",
        }


def spans_of(memories: Sequence[Memory]) -> list[Span]:
    """What lies side by side or one over the other is one; of a device only what lies one over the other, since copies
    and registrations must not go from one allocation into the next. Sorted.
    """
    spans: list[Span] = []
    for memory in sorted(memories, key=lambda one: one.address):
        end = memory.address + memory.length
        former = spans[-1] if spans else None
        if former is not None and memory.device == former.device and _touch(former, memory):
            spans[-1] = Span(former.start, max(former.end, end), [*former.memories, memory], former.device)
        elif memory.length:
            spans.append(Span(memory.address, end, [memory], memory.device))
    return spans


def _touch(former: Span, memory: Memory) -> bool:
    return memory.address < former.end or (memory.address == former.end and memory.device is None)


def device_of(span: Span) -> DeviceMemory:
    """Without a stream: what it names is waited for before each call."""
    assert span.device is not None
    given = span.memories[0].owner
    if len(span.memories) == 1 and isinstance(given, DeviceMemory):
        return replace(given, stream=None)
    writable = all(memory.writable for memory in span.memories)
    return DeviceMemory(span.start, span.end - span.start, span.device, writable, span.memories)


def array_of(span: Span, writable: bool) -> npt.NDArray[np.uint8]:
    """The span as a view of the array that owns all of it, so that transports can tell whose it is; else raw."""
    owners = [owner_of(memory.owner) for memory in span.memories]
    owner = owners[0]
    if owner is None or any(one is not owner for one in owners) or not owner.flags.c_contiguous:
        return np.asarray(At(span, writable))
    if (writable and not owner.flags.writeable) or owner.nbytes == 0:
        return np.asarray(At(span, writable))
    start = span.start - int(owner.ctypes.data)
    return owner.reshape(-1).view(np.uint8)[start : start + span.end - span.start]
