"""What is wrong with TLS files is said at start, naming the setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.client.tls import Tls
from kvstore.errors import Misconfigured
from kvstore.node.tls import Certificates, server_context
from kvstore.security import SecurityConfig
from tests.certificates import Authority


@pytest.fixture
def good(tmp_path: Path) -> SecurityConfig:
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("node", server=True)
    return SecurityConfig(certificate=pair.certificate, private_key=pair.private_key, client_ca=authority.path)


def test_good_files_are_taken(good: SecurityConfig) -> None:
    assert server_context(good) is not None
    assert Certificates(good).credentials() is not None and Certificates(good).context() is not None
    assert server_context(SecurityConfig()) is None
    assert Certificates(SecurityConfig()).credentials() is None and Certificates(SecurityConfig()).context() is None


def test_each_bad_file_is_named(good: SecurityConfig, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other").sign("other", server=True)
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    junk.chmod(0o600)
    for bad, named in (
        (replace(good, private_key=other.private_key), "security.private_key"),
        (replace(good, certificate=junk), "security.certificate"),
        (replace(good, private_key=tmp_path / "none"), "security.private_key"),
        (replace(good, client_ca=junk), "security.client_ca"),
    ):
        with pytest.raises(Misconfigured, match=named):
            Certificates(bad)


def test_files_are_read_again_or_stay_as_they_were(good: SecurityConfig, tmp_path: Path) -> None:
    certificates = Certificates(good)
    first = certificates.context()
    certificates.reload()
    second = certificates.context()
    assert second is not None and second is not first
    other = Authority(tmp_path, "other").sign("other", server=True)
    assert good.certificate is not None
    good.certificate.write_bytes(other.certificate.read_bytes())  # and not yet the key
    with pytest.raises(Misconfigured, match=r"security\.certificate"):
        certificates.reload()
    assert certificates.context() is second


def test_files_that_change_while_they_are_read_are_not_taken(
    good: SecurityConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC gets the bytes and HTTP reads the files: both must be of one version."""
    certificates = Certificates(good)
    before = certificates.context()
    assert good.client_ca is not None
    authority = good.client_ca

    def checked(security: SecurityConfig) -> object:
        context = server_context(security)
        authority.write_bytes(authority.read_bytes() + b"\n")
        return context

    monkeypatch.setattr("kvstore.node.tls.server_context", checked)
    with pytest.raises(Misconfigured, match="changed while they were read"):
        certificates.reload()
    assert certificates.context() is before


def test_a_key_that_others_read_is_refused(good: SecurityConfig) -> None:
    assert good.private_key is not None
    good.private_key.chmod(0o604)
    with pytest.raises(Misconfigured, match="others may read"):
        server_context(good)


def test_a_client_gives_both_or_neither(good: SecurityConfig) -> None:
    with pytest.raises(Misconfigured, match="both or neither"):
        Tls(certificate=good.certificate)
    with pytest.raises(Misconfigured, match=r"tls\.authority none\.pem"):
        Tls(authority=Path("none.pem")).credentials()
