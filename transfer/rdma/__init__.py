"""RDMA verbs: the reader's NIC reads and writes the owner's memory; the owner's CPU takes no part.

Needs a device, libibverbs, and pyverbs of the same release (a system package, never a dependency of ours). Importing
this package needs none of them: `unavailable` says what is missing, and RdmaTransport raises it.
"""

from transfer.rdma.config import RdmaConfig
from transfer.rdma.transport import RdmaTransport
from transfer.rdma.verbs import RdmaUnavailable, unavailable

__all__ = ["RdmaConfig", "RdmaTransport", "RdmaUnavailable", "unavailable"]
