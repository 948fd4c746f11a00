"""Bytes over TCP: a native data plane on both sides, several connections a peer."""

from transfer.tcp.config import TcpConfig, TlsFiles
from transfer.tcp.endpoint import TcpEndpoint
from transfer.tcp.transport import TcpTransport

__all__ = ["TcpConfig", "TcpEndpoint", "TcpTransport", "TlsFiles"]
