"""A request's chain of keys, from the engine's own block hashes, made longer as tokens are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from engine_adapters.base.link import Link
    from engine_adapters.vllm.layout import Geometry

__all__ = ["Chain"]


class Chain:
    """The engine's hashes stand in for tokens: they cover salt, LoRA, multimodal items and embeddings, and each is of
    the whole prefix. A block of the store takes the hash at its end.
    """

    def __init__(self, request: Request, geometry: Geometry) -> None:
        self._request = request
        self._step = geometry.block_tokens // geometry.hash_tokens
        self._keys: npt.NDArray[np.uint8] = np.empty((0, 32), np.uint8)
        self._of = b""  # the namespace's digest that the keys are of

    @property
    def digest(self) -> bytes:
        """Of the namespace that `keys` last gave keys of."""
        return self._of

    @property
    def blocks(self) -> int:
        """Full blocks of tokens known so far."""
        return len(self._request.block_hashes) // self._step

    def hash_of(self, block: int) -> bytes:
        return bytes(self._request.block_hashes[(block + 1) * self._step - 1])

    def keys(self, link: Link) -> npt.NDArray[np.uint8] | None:
        """(blocks, 32). None before the namespace was opened: then the search opens it."""
        namespace = link.opened
        if namespace is None:
            return None
        if namespace.digest != self._of:  # cleared meanwhile: the old keys name nothing
            self._keys, self._of = self._keys[:0], namespace.digest
        known = self._keys.shape[0]
        if known < self.blocks:
            hashes = self._request.block_hashes[(known + 1) * self._step - 1 :: self._step]
            parent = self._keys[-1].tobytes() if known else None
            more = namespace.chain_of_hashes(hashes, parent=parent)
            self._keys = np.concatenate((self._keys, more)) if known else more
        return self._keys[: self.blocks]
