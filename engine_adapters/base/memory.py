"""An engine's tensors as memory that the store may read and write: one flat array each storage, looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Memories", "flat"]


def flat(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The whole storage that a tensor of host memory is a view of."""
    storage = tensor.untyped_storage()
    array: npt.NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return array


class Memories:
    """The storages behind some tensors, each once. They must not be freed or resized while this is in use."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        found = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.device.type == "cpu"}
        addresses = sorted(address for address, tensor in found.items() if tensor.untyped_storage().nbytes())
        self.buffers: Sequence[npt.NDArray[np.uint8]] = [flat(found[address]) for address in addresses]
        self._begins = np.array(addresses, dtype=np.int64)
        self._ends = self._begins + np.array([buffer.nbytes for buffer in self.buffers], dtype=np.int64)

    def table(self, addresses: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(..., 3): buffer, offset, length, as the store's extents are. ValueError for what lies in none of them."""
        which = np.searchsorted(self._begins, addresses, side="right") - 1
        if not self.buffers or (which < 0).any() or (addresses + lengths > self._ends[which]).any():
            raise ValueError("a piece lies outside of the memory that is known")
        return np.stack((which, addresses - self._begins[which], np.broadcast_to(lengths, which.shape)), axis=-1)
