"""Sample settings: every key is one that the store reads, and a node would bind what they say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kvstore.errors import Misconfigured
from kvstore.members import EtcdAt, Listed, parse_members
from kvstore.node.auth import parse_access
from tests.deploy.shipped import DEPLOY, looked_at

SAMPLES = sorted(path for path in DEPLOY.rglob("*.toml") if path.name != "access.toml")


def test_every_way_to_run_has_a_sample() -> None:
    assert {path.relative_to(DEPLOY).as_posix() for path in SAMPLES} == {
        "config/single.toml",
        "config/static.toml",
        "config/etcd.toml",
        "config/object.toml",
        "compose/node.toml",
        "kubernetes/node.toml",
    }


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_a_sample_is_read(path: Path) -> None:
    config = looked_at(path)
    assert config.node.socket == Path("/run/kvstore/kvstore.sock")
    assert config.memory.bytes is not None and config.file.bytes is not None
    assert config.object.url is not None


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_a_slip_of_the_pen_in_it_would_be_seen(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    for table, keys in tomllib.loads(text).items():
        for key in keys:
            slip = tmp_path / "slip.toml"
            slip.write_text(text.replace(f"[{table}]\n", f"[{table}]\n{key}x = 1\n", 1))
            with pytest.raises(Misconfigured, match=f"{key}x"):
                looked_at(slip)


def test_who_speaks_to_other_machines_has_certificates() -> None:
    for name in ("config/static.toml", "config/etcd.toml", "compose/node.toml", "kubernetes/node.toml"):
        security = looked_at(DEPLOY / name).security
        assert security.certificate and security.private_key and security.client_ca and security.access_file, name
        assert not security.insecure


def test_the_clusters_are_what_they_are_called() -> None:
    static = looked_at(DEPLOY / "config/static.toml")
    listed = parse_members(static.cluster.members)
    assert isinstance(listed, Listed) and static.node.address in listed.addresses
    etcd = parse_members(looked_at(DEPLOY / "config/etcd.toml").cluster.members)
    assert isinstance(etcd, EtcdAt) and etcd.tls and len(etcd.endpoints) == 3
    bucket = looked_at(DEPLOY / "config/object.toml")
    assert bucket.object.url == "s3://kv-cache/prod" and bucket.cluster.secret_file is not None


def test_the_access_file_gives_what_it_says() -> None:
    access = parse_access((DEPLOY / "config/access.toml").read_text())
    assert {name: peer.rights for name, peer in access.certificates.items()} == {
        "engine": frozenset(),
        "operator": frozenset({"admin"}),
        "prometheus": frozenset({"metrics"}),
    }
    assert access.certificates["operator"].tenants is None and not access.certificates["prometheus"].tenants
