"""The only importer of the extension: everything native that this package uses, by name."""

from typing import TYPE_CHECKING

from transfer import _native
from transfer._native import (
    CopyJob,
    CopyPool,
    GrantTable,
    MappedSegment,
    Peer,
    RemoteSpan,
    TcpEngine,
    TcpJob,
    TcpTls,
    check_extents,
    keep_forever,
    touches,
)

if TYPE_CHECKING:
    from transfer._native import (
        RdmaEngine,
        RdmaJob,
        rdma_connect,
        rdma_deregister,
        rdma_destroy,
        rdma_missing,
        rdma_register,
    )
elif hasattr(_native, "RdmaEngine"):
    RdmaEngine = _native.RdmaEngine
    RdmaJob = _native.RdmaJob
    rdma_connect = _native.rdma_connect
    rdma_deregister = _native.rdma_deregister
    rdma_destroy = _native.rdma_destroy
    rdma_missing = _native.rdma_missing
    rdma_register = _native.rdma_register
else:  # built where there was no verbs.h: rdma_missing says so before anybody asks for the rest

    def rdma_missing() -> str:
        return "built without RDMA: infiniband/verbs.h was not there (Debian: libibverbs-dev)"

    RdmaEngine = RdmaJob = rdma_connect = rdma_deregister = rdma_destroy = rdma_register = None

__all__ = [
    "CopyJob",
    "CopyPool",
    "GrantTable",
    "MappedSegment",
    "Peer",
    "RdmaEngine",
    "RdmaJob",
    "RemoteSpan",
    "TcpEngine",
    "TcpJob",
    "TcpTls",
    "check_extents",
    "keep_forever",
    "rdma_connect",
    "rdma_deregister",
    "rdma_destroy",
    "rdma_missing",
    "rdma_register",
    "touches",
]
