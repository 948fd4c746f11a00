"""From SGLang's page hashes to the store's keys.

SGLang's hash of a page is SHA-256 over the page's tokens and the hash of the page before it, begun with LoRA and salt:
it names the whole prefix by itself. So a block's key is that hash's alone (a chain of one element from the namespace's
seed), and a page is found from whatever part of a prompt a call begins with, even where the engine does not say what
came before. What did come before (`prefix_keys`, sent with "hicache_storage_pass_prefix_keys") is told to the store
beside the keys, as parent and position: it decides which blocks leave first and which are packed together, not which
block is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kvstore import Namespace

__all__ = ["Run", "event_hash", "run_of"]

HASH_BYTES_MAX = 64  # of an engine's hash, as the store takes them


class Run(NamedTuple):
    """Pages that follow one another. keys: (n, 32). parent: of the first; None where a prompt begins, or unknown.
    position: how many pages come before.
    """

    keys: npt.NDArray[np.uint8]
    parent: bytes | None
    position: int


def run_of(namespace: Namespace, hashes: Sequence[str], before: Sequence[str] | None) -> Run:
    """Made anew with each call: after a clear the same hashes have other keys."""
    keys = np.empty((len(hashes), 32), np.uint8)
    for row, name in zip(keys, hashes, strict=True):
        row[:] = namespace.chain_of_hashes([_raw(name)])[0]
    if not before:
        return Run(keys, None, 0)
    return Run(keys, namespace.chain_of_hashes([_raw(before[-1])])[0].tobytes(), len(before))


def event_hash(name: str) -> int | bytes:
    """A page as the engine's own KV events call it: its hash's first 64 bits, signed."""
    raw = _raw(name)
    return int.from_bytes(raw[:8], "big", signed=True) if len(raw) >= 8 else raw


def _raw(name: str) -> bytes:
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        raw = name.encode()
    if not 0 < len(raw) <= HASH_BYTES_MAX:
        raise ValueError(f"a page's hash of {len(raw)} bytes")
    return raw
