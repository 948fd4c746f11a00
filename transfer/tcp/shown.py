"""The grants by which the batches of a TCP connection go."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from transfer.base import Presented
from transfer.grants import Descriptor

__all__ = ["Access", "Shown", "access_of", "proof_of"]

PROOF_BYTES = 16
Access = tuple[int, int, bytes]  # slot, generation, proof


def proof_of(descriptor: bytes) -> bytes:
    """What a request shows of a descriptor: nobody can make it who was not given all of that."""
    return hashlib.sha256(descriptor).digest()[:PROOF_BYTES]


def access_of(parsed: Descriptor, descriptor: bytes) -> Access:
    return parsed.slot, parsed.generation, proof_of(descriptor)


@dataclass(frozen=True, slots=True)
class Shown:
    """A presented grant. over: by the loop's clock, when its time is over at the latest."""

    presented: Presented
    access: Access
    over: float
