"""`cluster.members` and what goes with it: what is read, and what is refused by name."""

from __future__ import annotations

import pytest

from kvstore import config
from kvstore.errors import Misconfigured
from kvstore.members import Alone, EtcdAt, Listed, parse_members


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("standalone", Alone()),
        ("10.0.0.1:7400", Listed(("10.0.0.1:7400",))),
        ("a:1, [::1]:2,b.example:65535", Listed(("a:1", "[::1]:2", "b.example:65535"))),
        ("etcd://127.0.0.1:2379/kv", EtcdAt(("127.0.0.1:2379",), "kv", tls=False)),
        ("etcds://a:1,b:2/deep/prefix/", EtcdAt(("a:1", "b:2"), "deep/prefix", tls=True)),
    ],
)
def test_what_is_read(text: str, read: object) -> None:
    assert parse_members(text) == read
    assert config.assemble({"cluster.members": config.Said("--members", text)}).cluster.members == text


def test_a_list_of_a_file_is_one_too() -> None:
    told = config.assemble({"cluster.members": config.Said("file", ["a:1", "b:2"])})
    assert told.cluster.members == "a:1,b:2"


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "10.0.0.1", "127.0.0.1:0", "a:65536", "none", "a :1", "a:1,standalone", "redis://a:1/p"),
        *("etcd://a:1", "etcd://a:1/", "etcd:///p", "etcd://a/p", "etcd://a:1/p q", "etcd://a:1,:2/p", "http://a:1/p"),
    ],
)
def test_what_is_not(text: str) -> None:
    with pytest.raises(Misconfigured, match="must be standalone, or HOST:PORT"):
        config.assemble({"cluster.members": config.Said("--members", text)})


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (["cluster.etcd_user=me"], "etcd_user: is not read with cluster.members = 'standalone'"),
        (["cluster.address=a:1"], "address: is not read with cluster.members = 'standalone'"),
        (["cluster.members=a:1", "cluster.etcd_ca=/x"], "etcd_ca: is not read with cluster.members = 'a:1'"),
        (["cluster.members=etcd://h:1/p", "cluster.etcd_ca=/x"], "etcd_ca: is not read with"),
        (["cluster.members=etcd://h:1/p", "cluster.etcd_user=me"], "cluster.etcd_password_file: both or neither"),
        (["cluster.members=etcds://h:1/p", "cluster.etcd_certificate=/x"], "etcd_private_key: both or neither"),
        (["cluster.members=a:1", "cluster.dead_after_ms=900"], "must be at least twice cluster.ping_ms"),
        (["cluster.members=a:1", "cluster.address=0.0.0.0:7400"], "no wildcard"),
        (["cluster.members=a:1", "cluster.address=a:0"], "a port of 1 to 65535"),
        (["cluster.members=a:1", "node.address=none"], "node.address = 'none': other nodes come there"),
    ],
)
def test_what_cannot_be_is_refused(sets: list[str], why: str) -> None:
    said = {key: config.Said("--set", value) for key, _, value in (one.partition("=") for one in sets)}
    with pytest.raises(Misconfigured) as refused:
        config.assemble(said)
    assert why in str(refused.value)
