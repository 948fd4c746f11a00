"""Who is calling: tokens and certificates to a Peer, a Peer to tenants and rights.

Tokens are kept as SHA-256 digests. That is enough, because a token is 32 random bytes and not a password: there is
nothing to guess. All digests are compared in constant time, and all of them every time.

What is told to a caller never depends on what exists: a tenant that one may not use and one that nobody uses are
refused with the same words.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import threading
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvstore.errors import Misconfigured
from kvstore.security import SecurityConfig

RIGHTS: Final = frozenset({"admin", "metrics"})  # admin implies metrics
GRANTS_MAX: Final = 10_000
TENANT_BYTES_MAX: Final = 255
TOKEN_BYTES_MAX: Final = 512
ACCESS_BYTES_MAX: Final = 16 << 20
DOORS: Final = ("framed", "grpc", "metrics")


class Denied(Exception):
    """The caller may not. `known`: we know who it is (PERMISSION_DENIED, HTTP 403) or not (UNAUTHENTICATED, 401)."""

    def __init__(self, reason: str, *, known: bool) -> None:
        super().__init__(reason)
        self.known = known


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a connection belongs to. `tenants` None: every tenant."""

    name: str
    tenants: frozenset[str] | None
    rights: frozenset[str] = frozenset()

    def may_use(self, tenant: str) -> bool:
        return self.tenants is None or tenant in self.tenants

    def require_tenant(self, tenant: str) -> None:
        if not self.may_use(tenant):
            raise Denied(f"tenant: {self.name} may not use it", known=True)

    def require(self, right: str) -> None:
        if right not in self.rights and "admin" not in self.rights:
            raise Denied(f"{right}: {self.name} has no such right", known=True)


# The node's own user, over a socket that only it can open.
TRUSTED: Final = Peer("local", None, RIGHTS)


@dataclass(frozen=True, slots=True)
class Access:
    """The access file: token digests and certificate names, each with its peer."""

    tokens: tuple[tuple[bytes, Peer], ...] = ()
    certificates: Mapping[str, Peer] = field(default_factory=dict)


def load_access(path: Path) -> Access:
    """Reads the access file. Raises Misconfigured naming file, entry and what is allowed."""
    where = f"security.access_file {path}"
    try:
        # Not waiting, since a pipe would keep it waiting for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077:
                raise Misconfigured(f"{where}: must be a file that only its owner can read (chmod 600)")
            if about.st_uid not in {0, os.geteuid()}:
                raise Misconfigured(f"{where}: belongs to user {about.st_uid}, must be the node's own or root's")
            raw = file.read(ACCESS_BYTES_MAX + 1)
    except OSError as error:
        raise Misconfigured(f"{where}: {error}") from error
    if len(raw) > ACCESS_BYTES_MAX:
        raise Misconfigured(f"{where}: larger than {ACCESS_BYTES_MAX} bytes")
    try:
        return parse_access(raw.decode())
    except ValueError as error:  # of TOML and UTF-8 as well
        raise Misconfigured(f"{where}: {error}") from error


def parse_access(text: str) -> Access:
    """ValueError names the entry."""
    document = tomllib.loads(text)
    _refuse_others(document, {"token", "certificate"}, "the file")
    tokens: dict[bytes, Peer] = {}
    for where, entry in _entries(document, "token"):
        _refuse_others(entry, {"name", "sha256", "tenants", "rights"}, where)
        digest = entry.get("sha256")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{where}.sha256: 64 hexadecimal digits, the SHA-256 of the token")
        if bytes.fromhex(digest) in tokens:
            raise ValueError(f"{where}.sha256: given twice")
        tokens[bytes.fromhex(digest)] = _peer(entry, where)
    certificates: dict[str, Peer] = {}
    for where, entry in _entries(document, "certificate"):
        _refuse_others(entry, {"name", "tenants", "rights"}, where)
        peer = _peer(entry, where)
        if peer.name in certificates:
            raise ValueError(f"{where}.name: given twice")
        certificates[peer.name] = peer
    if len(tokens) + len(certificates) > GRANTS_MAX:
        raise ValueError(f"more than {GRANTS_MAX} entries")
    return Access(tuple(tokens.items()), certificates)


def _entries(document: Mapping[str, object], kind: str) -> Iterable[tuple[str, dict[str, object]]]:
    entries = document.get(kind, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{kind}: tables, written [[{kind}]]")
    return [(f"{kind}[{i}]", entry) for i, entry in enumerate(entries)]


def _refuse_others(table: Mapping[str, object], allowed: set[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise ValueError(f"{where}.{key}: not a key here; allowed: {', '.join(sorted(allowed))}")


def _peer(entry: Mapping[str, object], where: str) -> Peer:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.name: a text that says whose it is")
    tenants = _texts(entry.get("tenants", []), f"{where}.tenants")
    rights = _texts(entry.get("rights", []), f"{where}.rights")
    if not rights <= RIGHTS:
        raise ValueError(f"{where}.rights: {', '.join(sorted(RIGHTS))}")
    if "*" in tenants and len(tenants) > 1:
        raise ValueError(f'{where}.tenants: "*" stands alone')
    return Peer(name, None if "*" in tenants else tenants, rights)


def _texts(value: object, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(
        isinstance(text, str) and 0 < len(text.encode()) <= TENANT_BYTES_MAX for text in value
    ):
        raise ValueError(f"{where}: a list of texts of 1 to {TENANT_BYTES_MAX} bytes")
    return frozenset(value)


def several_tenants(security: SecurityConfig, access: Access) -> bool:
    """Whether the settings name more than one tenant, so that each has a share (shares.py) and none has it all."""
    peers = [peer for _, peer in access.tokens] + list(access.certificates.values())
    named = frozenset[str]().union(*(peer.tenants for peer in peers if peer.tenants is not None))
    if security.access_file is None or security.allowed_uids:
        named |= frozenset(security.anonymous_tenants)
    return len(named) > 1


class Guard:
    """Answers who a caller is, for every TCP door of a node: gRPC, and the HTTP endpoint of the metrics. Counts those
    whom a door has turned away.

    Thread-safe: `reload` swaps references, and counts have a lock.
    """

    def __init__(self, security: SecurityConfig) -> None:
        self._security = security
        self._access = self._read()
        self.several_tenants = several_tenants(security, self._access)
        self._lock = threading.Lock()
        self._denials = {(door, known): 0 for door in DOORS for known in (False, True)}

    def _read(self) -> Access:
        if self._security.access_file is None:
            return Access()
        access = load_access(self._security.access_file)
        if access.certificates and self._security.client_ca is None:
            raise Misconfigured(
                f"security.access_file {self._security.access_file}: certificate[0]: nobody is asked for a certificate "
                "without security.client_ca"
            )
        return access

    def denied(self, door: str, denied: Denied) -> None:
        """A door has told a caller so."""
        with self._lock:
            self._denials[door, denied.known] += 1

    def denials(self) -> dict[tuple[str, bool], int]:
        """How often each door has told a caller so, by whether it knew who that was."""
        with self._lock:
            return dict(self._denials)

    def reload(self) -> None:
        """Reads the access file again, so that tokens can be rotated under a running node. Raises as at start,
        changing nothing.
        """
        if self._security.access_file:
            self._access = self._read()
            self.several_tenants = several_tenants(self._security, self._access)

    def tokens(self) -> tuple[tuple[bytes, Peer], ...]:
        """Digest and bearer of each token, for the framed door, which compares them itself."""
        return self._access.tokens

    def certificates(self) -> tuple[tuple[str, Peer], ...]:
        """Name in a certificate, and its bearer; for the framed door."""
        return tuple(self._access.certificates.items())

    def authorize(self, headers: Mapping[str, str], certificate_names: Iterable[str] = ()) -> Peer:
        """Who this is. `headers` have lower-case names; `certificate_names` are those of a certificate that TLS has
        verified.

        A token, where one is shown, decides; then the certificate. Raises Denied.
        """
        return self._authorize(headers.get("authorization"), tuple(certificate_names))

    def authorize_metrics(self, headers: Mapping[str, str], certificate_names: Iterable[str] = ()) -> Peer:
        """As authorize, for /metrics, whose labels name every tenant: wants the right `metrics` once anybody must
        say who they are.
        """
        peer = self.authorize(headers, certificate_names)
        if self._security.authenticates:
            peer.require("metrics")
        return peer

    def _authorize(self, authorization: str | None, certificate_names: tuple[str, ...]) -> Peer:
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise Denied("authorization: Bearer TOKEN is the only scheme", known=False)
            return self._by_token(token.strip())
        if self._security.client_ca is not None and certificate_names:
            for name in certificate_names:
                if name in self._access.certificates:
                    return self._access.certificates[name]
            if self._security.access_file is None:
                # Signed by the authority the operator named, told apart from no other: the least that is of use.
                return Peer(certificate_names[0], frozenset(self._security.anonymous_tenants))
            raise Denied("certificate: not in the access file", known=False)
        if self._security.authenticates:
            raise Denied("authorization: a bearer token is needed", known=False)
        return Peer("anonymous", frozenset(self._security.anonymous_tenants))

    def _by_token(self, token: str) -> Peer:
        if len(token) > TOKEN_BYTES_MAX:
            raise Denied("authorization: not a token of this node", known=False)
        shown = hashlib.sha256(token.encode()).digest()
        found: Peer | None = None
        for digest, peer in self._access.tokens:
            if hmac.compare_digest(digest, shown):
                found = peer
        if found is None:
            raise Denied("authorization: not a token of this node", known=False)
        return found
