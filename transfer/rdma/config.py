"""Settings and addresses of the RDMA transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from transfer import sockets
from transfer.grants import GRANTS_MAX
from transfer.plan import SLICE_BYTES
from transfer.rails import RailConfig
from transfer.rdma.frames import LANES_MAX, RAILS_MAX
from transfer.regions import REGIONS_MAX
from transfer.sockets import TlsFiles

__all__ = ["SCHEME", "RdmaConfig", "parse_address"]

SCHEME = "rdma://"
_RANGES = {
    "qps": (1, LANES_MAX),
    "rails": (1, RAILS_MAX),
    "window": (1, 1_024),
    "tries_max": (1, 64),
    "timeout": (1, 31),
    "retries": (0, 7),
    "cq_entries": (64, 1 << 20),
    "mrs_max": (1, 1 << 18),
    "cached_bytes_max": (0, 1 << 50),
    "cached_max": (1, 1 << 18),
    "transfers_max": (1, 1 << 20),
    "regions_max": (1, REGIONS_MAX),
    "grants_max": (1, GRANTS_MAX),
    "connections_max": (1, 65_536),
    "queue_pairs_max": (1, 1 << 20),
    "port": (0, 65_535),
}
_TIMES = ("linger_s", "port_look_s", "greeting_s", "keepalive_s", "reconnect_s", "quiesce_max_s", "cached_s")


@dataclass(frozen=True, slots=True)
class RdmaConfig:
    """`host`, `port`: where the control connection is listened for. Beyond loopback it needs `tls`, since whoever sees
    a descriptor can use it, or `trusted_network`. RDMA itself is never encrypted.

    `devices`: which to use, by name, in this order; empty for all whose port is active, at most `rails`. Rails pair the
    two sides' devices in order. `qps`: queue pairs for each rail of a peer. `window`: requests outstanding on one.
    `timeout`, `retries`: as verbs have them; a dead path is noticed after 4.096 us * 2^timeout * (retries + 1), and up
    to four times that on some hardware; the default is 0.47 s. `tries_max`: how many such failures of its path a
    request outlives. `linger_s`: what of a stopped batch is still out after that is flushed, and its queue pairs built
    anew. `spin_s`: how long completions are polled for before the thread sleeps. `rail`: when a rail that has
    failed is tried again. `port_look_s`: how often a port is looked at that is down. `cq_entries`: completions that a
    device keeps for us, which bounds peers * qps * window. `mrs_max`: memory regions that the devices hold for us,
    granted ranges and our own. `queue_pairs_max`: that all peers together may have us make; devices have few enough.
    `reconnect_s`: how long another control connection is sought when one is lost. `all_rails`: those of far NICs carry
    bytes as those of near ones do (transfer.rdma.nearness). `cached_bytes_max`, `cached_max`, `cached_s`: registrations
    of memory that outlive its region for so long, and hold it, in case that it comes again (transfer.rdma.kept); 0
    bytes: none does.
    """

    host: str = "127.0.0.1"
    port: int = 0
    listens: bool = True
    trusted_network: bool = False
    tls: TlsFiles | None = None
    devices: tuple[str, ...] = ()
    rails: int = RAILS_MAX
    qps: int = 2
    window: int = 32
    slice_bytes: int = SLICE_BYTES
    tries_max: int = 4
    timeout: int = 14
    retries: int = 6
    linger_s: float = 0.01
    spin_s: float = 0.000_05
    rail: RailConfig = field(default_factory=RailConfig)
    port_look_s: float = 0.5
    cq_entries: int = 16_384
    mrs_max: int = 16_384
    all_rails: bool = False
    cached_bytes_max: int = 256 << 20
    cached_max: int = 256
    cached_s: float = 10.0
    greeting_s: float = 5.0
    keepalive_s: float = 10.0
    reconnect_s: float = 60.0
    quiesce_max_s: float = 30.0
    transfers_max: int = 4_096
    regions_max: int = REGIONS_MAX
    grants_max: int = 16_384
    connections_max: int = 256
    queue_pairs_max: int = 4_096

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be within {low}..{high}, not {getattr(self, name)}")
        for name in _TIMES:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.spin_s < 0:
            raise ValueError(f"spin_s must not be negative, but is {self.spin_s}")
        if self.listens and self.tls is not None and not self.tls.certificate:
            raise ValueError("tls: who listens shows a certificate")
        self.check_host("host", self.host)

    def check_host(self, name: str, host: str) -> None:
        """Raises ValueError where a control connection must not go."""
        if self.tls is None and not self.trusted_network and not sockets.is_loopback(host):
            raise ValueError(f"{name}: {host} is not a loopback address; give `tls`, or set trusted_network")


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `rdma://HOST:PORT`, an IPv6 host in brackets. Raises ValueError naming `address`."""
    return sockets.parse_address(SCHEME, address)
