"""What an operator says about who may reach a node, and what follows from it for its addresses. Pure.

A section of the configuration (`[security]`), enforced in kvstore.node: tokens and certificates by auth.py, TLS by
tls.py, user ids of the framed socket by the native door.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import Misconfigured

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """All off is right for one machine: loopback and Unix sockets only, one tenant over TCP.

    certificate, private_key: PEM files of the node. Both or neither; with them every TCP door speaks TLS.
    client_ca: PEM file. TCP clients must show a certificate that one of these signed (mTLS).
    access_file: TOML, 0600: which token or certificate may use which tenants (docs/security.md). With it, or with
        client_ca, nobody comes in over TCP unknown.
    anonymous_tenants: what a TCP client may use while neither is set.
    trusted_uids: user ids that may map segments and use every tenant over the framed socket; the node's own is
    always one.
    allowed_uids: further user ids that may use `anonymous_tenants` over the framed socket; they map nothing, their
    bytes move by transfers.
    insecure: allow addresses beyond loopback without TLS and authentication.
    """

    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    access_file: Path | None = None
    anonymous_tenants: tuple[str, ...] = (DEFAULT_TENANT,)
    trusted_uids: tuple[int, ...] = ()
    allowed_uids: tuple[int, ...] = ()
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise Misconfigured("security.certificate and security.private_key: both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise Misconfigured(
                "security.client_ca: needs security.certificate, clients are asked for theirs inside TLS"
            )
        for name in ("trusted_uids", "allowed_uids"):
            if any(uid < 0 for uid in getattr(self, name)):
                raise Misconfigured(f"security.{name}: user ids are not negative")

    @property
    def tls(self) -> bool:
        return self.certificate is not None

    @property
    def authenticates(self) -> bool:
        """Whether TCP clients must say who they are."""
        return self.client_ca is not None or self.access_file is not None


def is_local(address: str) -> bool:
    """Whether `unix:PATH` or `HOST:PORT` can be reached from this machine only. A name other than localhost is not."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_events(security: SecurityConfig, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """As check_addresses, of ZeroMQ's (tcp://HOST:PORT, ipc://PATH): nothing seals or guards them, whatever else is
    configured, and what they tell has the tokens of prompts in it.
    """
    exposed = [
        address
        for address in addresses
        if address.startswith("tcp://") and not is_local(address.removeprefix("tcp://"))
    ]
    if exposed and not security.insecure:
        raise Misconfigured(
            f"{', '.join(exposed)}: reachable from other machines, and ZeroMQ has neither TLS nor authentication here; "
            "bind to loopback or ipc:// and let something that has both carry it on, or say --insecure"
        )
    return tuple(
        f"INSECURE: {address} tells whoever comes, from any machine, the tokens of prompts" for address in exposed
    )


def check_addresses(security: SecurityConfig, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses what must not be bound; returns what must be said aloud in the log, one line each.

    Raises Misconfigured, naming the address, where one is reachable from elsewhere without both TLS and
    authentication, and security.insecure does not allow it.
    """
    exposed = tuple(address for address in addresses if not is_local(address))
    lacking = [
        what
        for what, there in (
            ("TLS (security.certificate, security.private_key)", security.tls),
            ("authentication (security.access_file or security.client_ca)", security.authenticates),
        )
        if not there
    ]
    if not lacking:
        return ()
    if exposed and not security.insecure:
        raise Misconfigured(
            f"{', '.join(exposed)}: reachable from other machines without {' and without '.join(lacking)}; "
            "bind to loopback, configure them, or say --insecure"
        )
    return tuple(
        f"INSECURE: {address} is reachable from other machines without {' and '.join(lacking)}" for address in exposed
    )
