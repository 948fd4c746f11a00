"""Addresses and settings of the TCP transport: what is refused, and how it is said."""

from __future__ import annotations

import pytest

from transfer.tcp import TcpConfig, TlsFiles
from transfer.tcp.config import address_of, is_loopback, parse_address

TLS = TlsFiles("certificate.pem", "key.pem", "ca.pem")


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 0), ("localhost", 1), ("::1", 65_535), ("fe80::1%eth0", 7), ("node-7.example", 9)]
)
def test_addresses_are_read_as_they_are_written(host: str, port: int) -> None:
    assert parse_address(address_of(host, port)) == (host, port)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1:1", "tcp://", "tcp://host", "tcp://:1", "tcp://::1:5", "tcp://h:-1", "tcp://h:70000", "tcp://h:²"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address must be tcp://HOST:PORT"):
        parse_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    TcpConfig(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fe80::1%lo", "example.org", "127.0.0.1.example.org"])
def test_nothing_leaves_loopback_without_tls(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match=r"host: .* is not a loopback address; give `tls`"):
        TcpConfig(host=host)
    TcpConfig(host=host, tls=TLS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536),
        ("lanes", 0),
        ("workers", 0),
        ("requests_max", 0),
        ("transfers_max", 0),
        ("grants_max", 0),
        ("grants_max", 1 << 20),
        ("greeting_s", 0.0),
        ("keepalive_s", -1.0),
        ("reconnect_s", 0.0),
        ("quiesce_max_s", 0.0),
        ("spin_s_max", 0.1),
    ],
)
def test_limits_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TcpConfig(**{name: value})  # type: ignore[arg-type]


def test_a_certificate_has_its_key_and_who_listens_has_one() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        TlsFiles(certificate="certificate.pem")
    with pytest.raises(ValueError, match="who listens shows a certificate"):
        TcpConfig(tls=TlsFiles(ca="ca.pem"))
    TcpConfig(tls=TlsFiles(ca="ca.pem"), listens=False)
