"""Reads that a NIC lands on a device by itself, hashed there afterwards: eight bytes a leaf cross the bus.

Rules
- Only where every part lies in one piece on the device, and all of the batch on one: the kernel reads leaves where they
  lie. Other batches are staged, and hashed on their way.
- Hashed when all of it has landed. Where it has not, no checksum is told (0), of what arrived neither.
- Answers when the kernel is over, too: it reads the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from transfer.base import LEAF_BYTES, Endpoint
from transfer.batch import Batch, dense
from transfer.devices.crossing import uncancelled
from transfer.devices.process import Devices
from transfer.devices.windows import folded
from transfer.errors import Reason, TransferError, TransferFault
from transfer.pending import NO_DIGESTS, Pending, Report
from transfer.regions import Region

__all__ = ["HashedRead", "pieces_of"]


def pieces_of(batch: Batch, regions: Mapping[int, Region], parts: Sequence[int]) -> npt.NDArray[np.uint64] | None:
    """The address of each part, or None where one does not lie in one piece. Raises ValueError naming `parts`."""
    table = batch.table[batch.table[:, 4] > 0]
    lengths = np.array(parts, dtype=np.int64)
    if int(lengths.sum()) != batch.bytes or (len(lengths) and int(lengths.min()) < 0):
        raise ValueError(f"parts must add up to the batch's {batch.bytes} bytes")
    if not len(table):
        return np.zeros(len(lengths), dtype=np.uint64)
    positions = np.append(0, np.cumsum(table[:, 4]))
    apart = (table[1:, 0] != table[:-1, 0]) | (table[1:, 1] != table[:-1, 1] + table[:-1, 4])
    runs = positions[:-1][np.concatenate(((True,), apart))]
    starts = np.append(0, np.cumsum(lengths))
    first = np.searchsorted(runs, starts[:-1], side="right")
    last = np.searchsorted(runs, starts[1:], side="left")
    if ((last > first) & (lengths > 0)).any():
        return None
    row = np.minimum(np.searchsorted(positions, starts[:-1], side="right") - 1, len(table) - 1)
    ids, of = dense(table[:, 0])
    bases = np.array([regions[region_id].address for region_id in ids], dtype=np.uint64)
    into = table[:, 1][row] + starts[:-1] - positions[row]
    addresses: npt.NDArray[np.uint64] = bases[np.broadcast_to(of, len(table))[row]] + into.astype(np.uint64)
    return addresses


class HashedRead:
    """One batch, `pending` its answer."""

    def __init__(
        self,
        inner: Endpoint,
        devices: Devices,
        batch: Batch,
        regions: Mapping[int, Region],
        parts: Sequence[int],
        pieces: npt.NDArray[np.uint64],
        *,
        deadline_s: float,
        settled: Callable[[HashedRead], None],
    ) -> None:
        """Raises as the transport within does, before anything moves."""
        self._devices = devices
        self._batch = batch
        self._parts = np.array(parts, dtype=np.int64)
        self._pieces = pieces
        (self._device,) = {region.device for region in regions.values()}
        self._settled = settled
        self._transfer = inner.read(batch, deadline_s=deadline_s)
        self._report = Report(0, np.full(len(batch), Reason.CANCELLED, dtype=np.uint8))
        self._poisoned = False
        self.pending = Pending(
            list(regions.values()),
            len(batch),
            deadline_s=deadline_s,
            quiesce_max_s=devices.settings.quiesce_max_s,
            stop_bytes=self._stop,
        )
        self._task = asyncio.get_running_loop().create_task(self._move())
        self._task.add_done_callback(self._over)

    def _stop(self, reason: Reason) -> None:
        self._report = Report(0, np.full(len(self._batch), reason, dtype=np.uint8))
        self._transfer.cancel()  # also where the task has not begun to wait for it
        self._task.cancel()

    async def _move(self) -> None:
        try:
            landed = await self._transfer
        except TransferError as error:
            self._poisoned = error.poisoned
            if self.pending.stopping is Reason.NONE:
                self._report = self._failed(error)
            return
        except asyncio.CancelledError as error:
            self._poisoned = isinstance(error.__cause__, TransferError)
            raise
        starts, lengths = self._leaves()
        device = self._device
        assert device is not None
        leaves = NO_DIGESTS
        if len(starts):
            leaves = await uncancelled(self._devices.run(lambda: self._devices.hashed(device, starts, lengths)))
        self._report = Report(landed.bytes, None, self._checksums(leaves), leaves)

    def _leaves(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        counts = -(-self._parts // LEAF_BYTES)
        of = np.repeat(np.arange(len(counts)), counts)
        into = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * LEAF_BYTES
        lengths = np.minimum(self._parts[of] - into, LEAF_BYTES)
        return self._pieces[of] + into.astype(np.uint64), lengths.astype(np.uint32)

    def _checksums(self, leaves: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        ends = np.cumsum(-(-self._parts // LEAF_BYTES)).tolist()
        return np.array(
            [folded(leaves[start:end]) for start, end in zip([0, *ends], ends, strict=False)], dtype=np.uint64
        )

    def _failed(self, error: TransferError) -> Report:
        reasons = np.full(len(self._batch), Reason.LANDED, dtype=np.uint8)
        for failure in error.failures:
            reasons[list(failure.extents)] = failure.reason
        return Report(0, reasons, np.zeros(len(self._parts), dtype=np.uint64))

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._settled(self)
        if error is not None:  # the kernel: what it hashed is not known to be right, nor that it is over
            self._poisoned = True
            self._report = Report(0, np.full(len(self._batch), Reason.DEVICE, dtype=np.uint8))
            if not isinstance(error, TransferFault):
                told = {"message": "hashing on a device failed", "exception": error, "task": task}
                asyncio.get_running_loop().call_exception_handler(told)
        (self.pending.lost if self._poisoned else self.pending.quiet)(self._report)
