"""The only importer of the extension: everything native that this package uses, by name."""

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

__all__ = [
    "CopyJob",
    "CopyPool",
    "GrantTable",
    "MappedSegment",
    "Peer",
    "RemoteSpan",
    "TcpEngine",
    "TcpJob",
    "TcpTls",
    "check_extents",
    "keep_forever",
    "touches",
]
