"""What must agree: every difference is named, with both values, and nothing of the secret is told."""

from __future__ import annotations

import pytest

from kvstore.config import ClusterConfig
from kvstore.directory.agreement import agreed, check_table, difference, secret_id
from kvstore.directory.base import Member, decode_member, encode_member

SECRET = b"s" * 32
OURS = agreed(ClusterConfig(), SECRET, "s3://bucket/prefix")


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (agreed(ClusterConfig(), b"t" * 32, "s3://bucket/prefix"), "cluster.secret_file (its id)"),
        (agreed(ClusterConfig(family_blocks=5), SECRET, "s3://bucket/prefix"), "cluster.family_blocks"),
        (agreed(ClusterConfig(), SECRET, "s3://bucket/other"), "object.url (its digest)"),
        (agreed(ClusterConfig(), SECRET, None), "object.url (its digest)"),
        ({**OURS, "format of blocks": "0"}, "format of blocks"),
        ({name: value for name, value in OURS.items() if name != "protocol between nodes"}, "protocol between nodes"),
        ({**OURS, "of a later release": "1"}, "of a later release"),
    ],
)
def test_a_difference_is_named_with_both_values(theirs: dict[str, str], name: str) -> None:
    told = difference(OURS, theirs, "the other")
    assert told is not None and told.startswith(f"{name}: ")
    for table in (OURS, theirs):
        assert (repr(table[name]) if name in table else "not known") in told


def test_sizes_and_directories_are_a_nodes_own() -> None:
    here, there = (agreed(ClusterConfig(), SECRET, f"file:///{place}") for place in "ab")
    assert difference(here, there, "x") is None
    assert difference(OURS, dict(OURS), "x") is None


def test_a_secret_is_told_apart_and_not_told() -> None:
    assert secret_id(SECRET) != secret_id(b"t" * 32) and len(secret_id(SECRET)) == 16
    assert not any(SECRET.hex() in value or "s" * 8 in value for value in OURS.values())


@pytest.mark.parametrize("table", [{"x" * 65: ""}, {"x": "y" * 257}, {"x": "\n"}, {str(i): "" for i in range(65)}])
def test_a_table_has_bounds(table: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="settings"):
        check_table(table)


def test_a_member_is_written_and_read_again() -> None:
    member = Member("[::1]:7400", bytes(range(16)), 2**64 - 1, "n", "a:1", "h", "0.1")
    assert decode_member(encode_member(member)) == member
    for cut in range(len(encode_member(member))):
        with pytest.raises(ValueError, match=r"JSON|printable|16 bytes|hex|id"):
            decode_member(encode_member(member)[:cut])
    with pytest.raises(ValueError, match="name"):
        decode_member(encode_member(Member("a:1", bytes(16), name="x\x1b[2J")))
