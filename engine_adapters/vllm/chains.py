"""A request's chain of keys, from the engine's own block hashes, made longer as tokens are decoded.

The engine's thread only copies its list of hashes; a search's thread makes keys of them. What no search has asked for
(what was decoded) is made when it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from engine_adapters.base.link import Link
    from engine_adapters.vllm.layout import Geometry
    from kvstore import Namespace

__all__ = ["Chain"]

Keys = npt.NDArray[np.uint8]
NO_KEYS = np.empty((0, 32), np.uint8)


class Chain:
    """The engine's hashes stand in for tokens: they cover salt, LoRA, multimodal items and embeddings, and each is of
    the whole prefix. A block of the store takes the hash at its end.

    All calls are of the engine's thread; what `naming` returns may be called in any.
    """

    __slots__ = ("_request", "_step", "made")

    def __init__(self, request: Request, geometry: Geometry) -> None:
        self._request = request
        self._step = geometry.hashes
        # The digest of the namespace that keys were last made of, and those; replaced as one, by whoever makes more.
        self.made = (b"", NO_KEYS)

    @property
    def blocks(self) -> int:
        """Full blocks of tokens known so far."""
        return len(self._request.block_hashes) // self._step

    def hash_of(self, block: int) -> bytes:
        return bytes(self._request.block_hashes[(block + 1) * self._step - 1])

    def naming(self, blocks: int) -> Callable[[Namespace], Keys]:
        """What makes the keys of all blocks that are known now, and gives those of the first `blocks`."""
        hashes = self._request.block_hashes[self._step - 1 :: self._step]  # a copy, which does not grow
        return lambda namespace: self._keys(namespace, hashes)[:blocks]

    def keys(self, link: Link) -> Keys | None:
        """(blocks, 32). None before the namespace was opened: then the search opens it."""
        namespace = link.opened
        if namespace is None:
            return None
        digest, made = self.made
        blocks = self.blocks
        if made.shape[0] < blocks or digest != namespace.digest:
            return self._keys(namespace, self._request.block_hashes[self._step - 1 :: self._step])
        return made[:blocks]

    def _keys(self, namespace: Namespace, hashes: Sequence[bytes]) -> Keys:
        digest, keys = self.made
        current = namespace.digest
        if digest != current:  # cleared meanwhile: the old keys name nothing
            keys = NO_KEYS
        known = keys.shape[0]
        if known < len(hashes):
            parent = keys[-1].tobytes() if known else None
            more = namespace.chain_of_hashes(hashes[known:], parent=parent)
            keys = np.concatenate((keys, more)) if known else more
            # Cleared in between: of whichever these are, they are not kept.
            self.made = (current, keys) if namespace.digest == current else (b"", NO_KEYS)
        return keys[: len(hashes)]
