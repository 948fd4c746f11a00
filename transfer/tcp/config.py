"""Settings and addresses of the TCP transport."""

from __future__ import annotations

from dataclasses import dataclass

from transfer import sockets
from transfer.grants import GRANTS_MAX
from transfer.plan import SLICE_BYTES
from transfer.regions import REGIONS_MAX
from transfer.sockets import TlsFiles, is_loopback

__all__ = ["SCHEME", "UNIX", "TcpConfig", "TlsFiles", "address_of", "is_loopback", "parse_address", "path_of"]

SCHEME = "tcp://"
UNIX = "unix:"
_AT_LEAST_ONE = (
    "workers",
    "lanes",
    "requests_max",
    "transfers_max",
    "regions_max",
    "connections_max",
)


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """`host`, `port`: where to listen; port 0 takes a free one. `listens` False: this side only connects. `tls`: else
    nothing leaves loopback. `path`: also listens on this Unix socket, open to every user of the machine as loopback is,
    and as there a connection alone opens nothing; never sealed; "": not.

    `lanes`: connections to each peer. `workers`: threads that move bytes. `requests_max`: what a peer may have
    outstanding on one connection. `spin_s_max`: how long an idle worker looks again before it sleeps (halt polling),
    which spares a wake an answer; 0: never. `greeting_s`: how long a new connection may take to say who it is.
    `keepalive_s`: a peer whose machine is gone is noticed after about twice that, or when bytes sent stay
    unacknowledged for that long. `reconnect_s`: how long a lost lane is tried again.
    """

    host: str = "127.0.0.1"
    port: int = 0
    listens: bool = True
    tls: TlsFiles | None = None
    path: str = ""
    lanes: int = 2
    workers: int = 1
    slice_bytes: int = SLICE_BYTES
    requests_max: int = 64
    spin_s_max: float = 0.000_1
    greeting_s: float = 5.0
    keepalive_s: float = 10.0
    reconnect_s: float = 60.0
    quiesce_max_s: float = 30.0
    transfers_max: int = 4_096
    regions_max: int = REGIONS_MAX
    grants_max: int = 16_384
    connections_max: int = 1_024

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be within 0..65535, not {self.port}")
        if not 1 <= self.grants_max <= GRANTS_MAX:
            raise ValueError(f"grants_max must be within 1..{GRANTS_MAX}, not {self.grants_max}")
        for name in ("greeting_s", "keepalive_s", "reconnect_s", "quiesce_max_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.spin_s_max <= 0.01:
            raise ValueError(f"spin_s_max must be within 0..0.01, not {self.spin_s_max}")
        if self.listens and self.tls is not None and not self.tls.certificate:
            raise ValueError("tls: who listens shows a certificate")
        self.check_clear("host", self.host)

    def check_clear(self, name: str, host: str) -> None:
        """Raises ValueError where bytes to or from this host would travel in the clear."""
        if self.tls is None and not is_loopback(host):
            raise ValueError(
                f"{name}: {host} is not a loopback address; give `tls`, or bytes would travel in the clear"
            )


def address_of(host: str, port: int) -> str:
    return sockets.address_of(SCHEME, host, port)


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://HOST:PORT`, an IPv6 host in brackets. Raises ValueError naming `address`."""
    return sockets.parse_address(SCHEME, address)


def path_of(address: str) -> str:
    """Of `unix:PATH`; "" for what is not one."""
    return address.removeprefix(UNIX) if address.startswith(UNIX) else ""
