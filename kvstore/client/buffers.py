"""Callers' memory: from what they hand over to addresses, checked, before anything is sent.

    whole     one contiguous buffer: block i lies at i * shard_bytes
    list      one buffer a block
    Extents   k places a block: row j of table[i] says (buffer, offset, length) of its j-th piece

Device memory (CUDA's) is told by its addresses, as host memory is: a process has one address space for both. Which is
which say the memories.

Errors are ValueError or TypeError that begin with the name of the argument ("into[3]: ..."). Nothing here copies.
What is made anew for each call is a NamedTuple here and in its neighbours: made in a third of a dataclass's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from transfer.devices import DeviceMemory, LibCuda, device_memory, load_cuda
from transfer.dlpack import HOST_KINDS, Kind, kind_name, kind_of, lying
from transfer.errors import TransferFault

Addresses = npt.NDArray[np.uint64]
PIECES_PER_BLOCK_MAX: Final = 65_536


class Memory(NamedTuple):
    """A contiguous piece of the caller's memory. `owner` keeps it where it is. device: the CUDA device that it lies on;
    None: the host's. stream: where work that touches it may be queued, as its array said (see `streams_of`).
    """

    address: int
    length: int
    writable: bool
    owner: object
    device: int | None = None
    stream: int | None = None


class Places(NamedTuple):
    """Where n blocks lie: `pieces` places each, block after block. `memories`: what they lie in, which keeps it there.

    addresses: (n * pieces,); lengths: (pieces,) where all blocks are cut alike, else (n * pieces,)
    devices: whether some of it lies on a device; streams: (device, stream) whose work until now is to be over first
    """

    addresses: Addresses
    lengths: Addresses
    pieces: int
    memories: Sequence[Memory]
    devices: bool = False
    streams: tuple[tuple[int, int], ...] = ()

    def of(self, first: int, end: int) -> Places:
        """Of blocks first..end."""
        if first == 0 and end * self.pieces == self.addresses.shape[0]:
            return self
        cut = slice(first * self.pieces, end * self.pieces)
        alike = self.lengths.shape[0] == self.pieces
        lengths = self.lengths if alike else self.lengths[cut]
        return self._replace(addresses=self.addresses[cut], lengths=lengths)

    def cut(self, begin: int, end: int) -> Places:
        """Bytes begin..end of every block. ValueError where that is not as many pieces of each."""
        lengths = np.resize(self.lengths, self.addresses.shape[0]).reshape(-1, self.pieces).astype(np.int64)
        ends = np.cumsum(lengths, axis=1)
        first, last = np.clip(ends - lengths, begin, end), np.clip(ends, begin, end)
        within = last > first
        counts = within.sum(axis=1)
        if len(counts) and (counts != counts[0]).any():
            raise ValueError(f"into: bytes {begin} to {end} of a block must be as many pieces of each")
        skipped = (first - (ends - lengths)).astype(np.uint64)
        addresses = (self.addresses.reshape(-1, self.pieces) + skipped)[within]
        pieces = int(counts[0]) if len(counts) else 1
        return self._replace(addresses=addresses, lengths=(last - first)[within].astype(np.uint64), pieces=pieces)

    def pick(self, blocks: Sequence[int]) -> Places:
        """Of these blocks only, in the order given."""
        chosen = np.asarray(blocks, dtype=np.int64)
        lengths = self.lengths
        if lengths.shape[0] != self.pieces:
            lengths = lengths.reshape(-1, self.pieces)[chosen].reshape(-1)
        addresses = self.addresses.reshape(-1, self.pieces)[chosen].reshape(-1)
        return self._replace(addresses=addresses, lengths=lengths)


@dataclass(frozen=True, slots=True)
class Extents:
    """Blocks that lie in several places each, for example one a layer of an engine's cache.

    table: int64 (n, k, 3): buffer index, offset, length, in bytes, in the order in which the pieces make the block.
    The lengths of one block add up to the shard's bytes. Blocks of a destination must not overlap.
    """

    buffers: Sequence[object]
    table: npt.NDArray[np.int64]

    @staticmethod
    def strided(buffers: Sequence[object], offsets: npt.ArrayLike, length: int) -> Extents:
        """The usual case: block i has one piece of `length` bytes in every buffer, at offsets[i] of each."""
        starts = np.asarray(offsets, dtype=np.int64)
        if starts.ndim != 1:
            raise ValueError(f"offsets: shape {starts.shape}, must be (blocks,)")
        table = np.empty((starts.shape[0], len(buffers), 3), dtype=np.int64)
        table[:, :, 0] = np.arange(len(buffers))
        table[:, :, 1] = starts[:, None]
        table[:, :, 2] = length
        return Extents(buffers, table)


@dataclass(slots=True)
class Registry:
    """Buffers that were looked at once. An entry keeps its buffer, so that its id cannot come to mean another."""

    _by_id: dict[int, Memory] = field(default_factory=dict)
    _uses: dict[int, tuple[int, object]] = field(default_factory=dict)

    def add(self, buffers: Sequence[object]) -> None:
        looked = [(buffer, memory_of(buffer, f"buffers[{i}]")) for i, buffer in enumerate(buffers)]
        for buffer, memory in looked:
            uses, _ = self._uses.get(id(buffer), (0, None))
            self._uses[id(buffer)] = (uses + 1, buffer)
            self._by_id[id(buffer)] = memory

    def remove(self, buffers: Sequence[object]) -> None:
        for buffer in buffers:
            uses, _ = self._uses.get(id(buffer), (0, None))
            if uses > 1:
                self._uses[id(buffer)] = (uses - 1, buffer)
            else:
                self._uses.pop(id(buffer), None)
                self._by_id.pop(id(buffer), None)

    @property
    def kept(self) -> frozenset[int]:
        """The identities of what `find` gives for them."""
        return frozenset(map(id, self._by_id.values()))

    def find(self, buffer: object, name: str) -> Memory:
        return self._by_id.get(id(buffer)) or memory_of(buffer, name)


def memory_of(buffer: object, name: str) -> Memory:
    """Where a buffer lies. Takes what has the buffer protocol, __dlpack__ or __cuda_array_interface__; of devices,
    CUDA's. Neither cupy nor a framework is imported for it.
    """
    if isinstance(buffer, np.ndarray):
        return _of_array(buffer, name)
    if isinstance(buffer, DeviceMemory):
        return _of_device(buffer, None, name)
    if hasattr(buffer, "__dlpack__"):
        return _of_dlpack(buffer, name)
    if hasattr(buffer, "__cuda_array_interface__"):
        return _of_device(buffer, _ordinal(buffer, name), name)
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: {type(buffer).__name__} has neither the buffer protocol nor __dlpack__") from None
    if not view.c_contiguous:
        raise ValueError(f"{name}: is not contiguous; name its pieces with Extents")
    if view.nbytes == 0:
        return Memory(0, 0, not view.readonly, view)
    flat = np.frombuffer(view, dtype=np.uint8)
    return Memory(flat.__array_interface__["data"][0], flat.nbytes, not view.readonly, flat)


def _of_dlpack(buffer: object, name: str) -> Memory:
    if not hasattr(buffer, "__dlpack_device__"):
        raise ValueError(f"{name}: has __dlpack__ and no __dlpack_device__")
    kind, _ = kind_of(buffer)
    if kind == Kind.CUDA:
        return _of_device(buffer, None, name)
    if kind not in HOST_KINDS:
        raise ValueError(f"{name}: lies in {kind_name(kind)}; taken are the host's and CUDA devices'")
    try:
        lies = lying(buffer)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    except (BufferError, RuntimeError) as error:  # what torch says of tensors that need grad
        raise ValueError(f"{name}: cannot be lent: {error}") from error
    if not lies.contiguous:
        raise ValueError(f"{name}: is not contiguous; name its pieces with Extents")
    return Memory(lies.address, lies.bytes, lies.writable, lies.capsule)


def _of_device(buffer: object, ordinal: int | None, name: str) -> Memory:
    try:
        taken = device_memory(buffer, device=ordinal)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error
    except (BufferError, RuntimeError) as error:
        raise ValueError(f"{name}: cannot be lent: {error}") from error
    # An array has no truth value.
    owner = taken if taken.owner is None or taken.dma_buf is not None else taken.owner
    return Memory(taken.address, taken.bytes, taken.writable, owner, taken.device, taken.stream)


def _ordinal(buffer: object, name: str) -> int | None:
    """Of the device that an array lies on which does not say it: the driver knows."""
    if hasattr(buffer, "__dlpack_device__"):
        return None
    try:
        address = int(buffer.__cuda_array_interface__["data"][0] or 0)  # type: ignore[attr-defined]
    except (KeyError, TypeError, ValueError, IndexError):
        return 0  # device_memory says what is wrong with it
    if not address:
        return 0
    try:
        return _driver().device_of(address)
    except TransferFault as error:
        raise ValueError(f"{name}: does not say on which device it lies, and nobody here knows: {error}") from error


@cache
def _driver() -> LibCuda:
    """Raises CudaUnavailable, which is not kept."""
    return load_cuda()


def streams_of(given: Sequence[tuple[object, Memory]]) -> tuple[tuple[int, int], ...]:
    """The streams that arrays name now: a registered one may be used on another stream than when it was looked at."""
    found: dict[tuple[int, int], None] = {}
    for buffer, memory in given:
        if memory.device is None or memory.stream is None:
            continue
        told = getattr(buffer, "__cuda_array_interface__", None)
        stream = told.get("stream", memory.stream) if isinstance(told, Mapping) else memory.stream
        if stream is not None:
            found[memory.device, int(stream)] = None
    return tuple(found)


def _of_array(array: npt.NDArray[np.generic], name: str) -> Memory:
    if array.dtype.hasobject:
        raise TypeError(f"{name}: an array of Python objects")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: is not contiguous; name its pieces with Extents")
    address: int = array.__array_interface__["data"][0]
    return Memory(address, array.nbytes, array.flags.writeable, array)


class Wanted(NamedTuple):
    """What a call needs of the memory it is given. `name`: the argument's, for messages. `writing`: a get writes into
    it, so it must be writable.
    """

    name: str
    blocks: int
    shard_bytes: int
    writing: bool


def places(given: object, wanted: Wanted, registry: Registry) -> Places:
    """Where the blocks lie.

    A destination may be longer than needed. A source may not: bytes left over mean that somebody counted differently,
    and then the wrong bytes would get a name.
    """
    if isinstance(given, Extents):
        return _scattered(given, wanted, registry)
    if isinstance(given, list | tuple):
        return _listed(given, wanted, registry)
    memory = registry.find(given, wanted.name)
    blocks, shard_bytes = wanted.blocks, wanted.shard_bytes
    _check(memory, wanted, wanted.name, blocks)
    end = memory.address + blocks * shard_bytes
    addresses = np.arange(memory.address, end, shard_bytes, dtype=np.uint64)
    found = Places(addresses, _one_length(shard_bytes), 1, (memory,))
    return found if memory.device is None else _on_devices(found, (given,))


@lru_cache(maxsize=64)
def _one_length(length: int) -> Addresses:
    """Shared by all who have one piece of this length a block."""
    lengths = np.array([length], dtype=np.uint64)
    lengths.flags.writeable = False
    return lengths


def _on_devices(found: Places, buffers: Sequence[object]) -> Places:
    """With what is to be known of devices, where some of it lies on one."""
    if all(memory.device is None for memory in found.memories):
        return found
    return found._replace(devices=True, streams=streams_of(list(zip(buffers, found.memories, strict=True))))


def _check(memory: Memory, wanted: Wanted, name: str, blocks: int) -> None:
    need = blocks * wanted.shard_bytes
    if wanted.writing and not memory.writable:
        raise ValueError(f"{name}: is read-only")
    if memory.length < need or (not wanted.writing and memory.length != need):
        least = "at least " if wanted.writing else ""
        raise ValueError(
            f"{name}: {memory.length} bytes, must be {least}{need}: {blocks} blocks of {wanted.shard_bytes} bytes"
        )


def _listed(given: Sequence[object], wanted: Wanted, registry: Registry) -> Places:
    name = wanted.name
    if len(given) != wanted.blocks:
        raise ValueError(f"{name}: {len(given)} buffers, must be one a block, {wanted.blocks}")
    found = [registry.find(buffer, f"{name}[{i}]") for i, buffer in enumerate(given)]
    for i, memory in enumerate(found):
        _check(memory, wanted, f"{name}[{i}]", 1)
    addresses = np.array([memory.address for memory in found], dtype=np.uint64)
    return _on_devices(Places(addresses, _one_length(wanted.shard_bytes), 1, found), given)


def _scattered(given: Extents, wanted: Wanted, registry: Registry) -> Places:
    name, blocks, shard_bytes = wanted.name, wanted.blocks, wanted.shard_bytes
    found = [registry.find(buffer, f"{name}.buffers[{i}]") for i, buffer in enumerate(given.buffers)]
    for i, memory in enumerate(found):
        if wanted.writing and not memory.writable:
            raise ValueError(f"{name}.buffers[{i}]: is read-only")
    table = _checked_table(given.table, f"{name}.table", blocks)
    pieces = int(table.shape[1])
    index, offset, length = table[:, :, 0], table[:, :, 1], table[:, :, 2]
    _all(index, (index >= 0) & (index < len(found)), name, f"buffer index, must be 0 to {len(found) - 1}")
    sizes = np.array([memory.length for memory in found], dtype=np.int64)[index] if found else index
    _all(length, (length > 0) & (length <= sizes), name, "length, must be 1 to the size of its buffer")
    _all(offset, (offset >= 0) & (offset <= sizes - length), name, "offset, the piece must end inside its buffer")
    sums = length.sum(axis=1)
    if (sums != shard_bytes).any():
        block = int(np.flatnonzero(sums != shard_bytes)[0])
        raise ValueError(f"{name}.table[{block}]: its lengths add up to {int(sums[block])}, must be {shard_bytes}")
    bases = np.array([memory.address for memory in found], dtype=np.uint64)
    addresses = (bases[index] + offset.astype(np.uint64)).reshape(-1) if blocks else bases[:0]
    lengths = length.reshape(-1).astype(np.uint64)
    return _on_devices(Places(addresses, lengths, max(pieces, 1), found), given.buffers)


def _checked_table(table: object, name: str, blocks: int) -> npt.NDArray[np.int64]:
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 3 or table.shape[2] != 3:
        what = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else type(table).__name__
        raise ValueError(f"{name}: {what}, must be int64 (blocks, k, 3)")
    if table.shape[0] != blocks:
        raise ValueError(f"{name}: {table.shape[0]} blocks, must be {blocks}")
    if blocks and not 0 < table.shape[1] <= PIECES_PER_BLOCK_MAX:
        raise ValueError(f"{name}: {table.shape[1]} pieces a block, must be 1 to {PIECES_PER_BLOCK_MAX}")
    return table


def _all(values: npt.NDArray[np.int64], good: npt.NDArray[np.bool_], name: str, allowed: str) -> None:
    if not good.all():
        block, piece = (int(i) for i in np.argwhere(~good)[0])
        raise ValueError(f"{name}.table[{block}, {piece}]: {int(values[block, piece])} is no {allowed}")
