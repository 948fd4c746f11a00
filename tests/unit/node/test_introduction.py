"""Two nodes get to know each other; nobody else gets past it, whatever he has overheard."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory.base import Member
from kvstore.errors import Misconfigured
from kvstore.node.auth import Denied
from kvstore.node.introduction import Introduction, decode_node, encode_node, pass_token
from kvstore.node.peer_desk import PeerDesk
from kvstore.wire import peers, store

SETTINGS = {"format": "1"}
A = Member("a:1", b"a" * 16, 1, "a", version="0")
B = Member("b:1", b"b" * 16, 2, "b", version="0", fabrics=("ib:fe80:0:0:0", "roce"))
SECRET = b"s" * 32
NONCE, OTHER = b"1" * 32, b"2" * 32


def of(secret: bytes = SECRET, **settings: str) -> Introduction:
    return Introduction(secret, {**SETTINGS, **settings})


def unheard(member: Member, method: int, body: bytes) -> bytes:
    """Says who it took to be speaking."""
    return member.id + bytes([method]) + body


def clearing() -> Any:
    return SimpleNamespace(hash=77, handle=lambda body: b"heard " + body)


def desk(introduction: Introduction | None = None, refuse: str | None = None) -> PeerDesk:
    return PeerDesk(introduction or of(), lambda: B, lambda member: refuse, unheard, clearing)


def challenge(at: PeerDesk, connection: int = 1, nonce: bytes = NONCE) -> peers.PeerChallengeResponse:
    body = peers.PeerChallengeRequest(nonce=nonce).SerializeToString()
    return peers.PeerChallengeResponse.FromString(at.call(connection, store.METHOD_PEER_CHALLENGE, body))


def hello(at: PeerDesk, request: peers.PeerHelloRequest, connection: int = 1) -> str:
    body = at.call(connection, store.METHOD_PEER_HELLO, request.SerializeToString())
    return peers.PeerHelloResponse.FromString(body).refusal


def test_both_know_who_the_other_is() -> None:
    at = desk()
    told = challenge(at)
    assert of().found(NONCE, told) == B
    assert hello(at, of().hello(NONCE, told.nonce, A)) == ""
    assert at.peer(1) == A
    answer = peers.PeerPingResponse.FromString(at.call(1, store.METHOD_PEER_PING, b""))
    assert (answer.incarnation, answer.generations) == (B.incarnation, 77)
    assert at.call(1, store.METHOD_PEER_GENERATIONS, b"x") == b"heard x"
    with pytest.raises(Denied):
        at.peer(2)
    at.gone(1)
    with pytest.raises(Denied):
        at.call(1, store.METHOD_PEER_PING, b"")


def test_another_secret_shows_nothing_to_either_side() -> None:
    at = desk(of(b"x" * 32))
    told = challenge(at)
    with pytest.raises(Misconfigured, match="b:1 has not shown"):
        of().found(NONCE, told)
    assert "a:1 has not shown" in hello(at, of().hello(NONCE, told.nonce, A))
    with pytest.raises(Denied):
        at.peer(1)


def test_settings_that_differ_are_named_before_the_proof() -> None:
    at = desk(of(b"x" * 32, width="16"))
    told = challenge(at)
    with pytest.raises(Misconfigured, match=r"width: '8' here, '16' at b \(b:1\)"):
        of(width="8").found(NONCE, told)
    assert "width: '16' here, '8' at a (a:1)" in hello(at, of(width="8").hello(NONCE, told.nonce, A))


def test_what_was_overheard_is_of_no_use() -> None:
    at = desk()
    told = challenge(at)
    right = of().hello(NONCE, told.nonce, A)
    assert hello(at, right) == ""
    with pytest.raises(ValueError, match="comes after a challenge"):  # the nonces have been used
        hello(at, right)
    challenge(at, 2)
    assert "has not shown" in hello(at, right, 2)  # another connection has another nonce
    told = challenge(at, 2)
    right = of().hello(NONCE, told.nonce, A)
    right.node = encode_node(replace(A, address="elsewhere:1"))  # what is proven is of the whole introduction
    assert "has not shown" in hello(at, right, 2)
    mirrored = challenge(at, 3)  # what it says itself, sent back
    said = peers.PeerHelloRequest(node=mirrored.node, settings=mirrored.settings, proof=mirrored.proof)
    assert "has not shown" in hello(at, said, 3)
    late = challenge(desk(), nonce=OTHER)
    with pytest.raises(Misconfigured, match="has not shown"):
        of().found(NONCE, late)


def test_who_is_not_welcome_is_told_why_and_is_nobody() -> None:
    at = desk(refuse="two nodes have it")
    told = challenge(at)
    assert hello(at, of().hello(NONCE, told.nonce, A)) == "two nodes have it"
    with pytest.raises(Denied):
        at.peer(1)


def test_the_directory_is_told_by_nodes_alone_and_by_whom() -> None:
    at = desk()
    unknown = store.METHOD_PEER_GENERATIONS
    for method in (store.METHOD_PEER_ANNOUNCE, store.METHOD_PEER_DIGEST, store.METHOD_PEER_LOCATE, unknown):
        with pytest.raises(Denied):
            at.call(1, method, b"x")
    told = challenge(at)
    assert hello(at, of().hello(NONCE, told.nonce, A)) == ""
    for method in (store.METHOD_PEER_ANNOUNCE, store.METHOD_PEER_DIGEST, store.METHOD_PEER_LOCATE):
        assert at.call(1, method, b"x") == A.id + bytes([method]) + b"x"


def test_a_node_that_is_in_no_cluster_says_so() -> None:
    alone = PeerDesk(of(), lambda: None, lambda member: None, unheard, clearing)
    with pytest.raises(Denied, match="in no cluster"):
        challenge(alone)


def test_the_token_of_the_door_is_of_the_secret_and_is_not_it() -> None:
    assert pass_token(SECRET) == pass_token(SECRET) != pass_token(b"x" * 32)
    assert SECRET.hex().encode() not in pass_token(SECRET)


@given(st.binary(max_size=200))
def test_any_bytes_for_a_node_are_a_node_or_a_value_error(raw: bytes) -> None:
    try:
        assert len(decode_node(raw).id) == 16
    except ValueError as error:
        assert str(error).startswith("node")


@given(st.binary(max_size=200), st.sampled_from([32, 33, 34, 38]))
def test_any_bytes_for_a_call_are_refused_by_name(raw: bytes, method: int) -> None:
    at = desk()
    try:
        at.call(1, method, raw)
    except (ValueError, Denied):
        pass
    else:
        assert method == store.METHOD_PEER_CHALLENGE


@pytest.mark.parametrize("fabrics", [["x"] * 17, ["y" * 300], ["z\x1b"], [""]])
def test_fabrics_that_are_none_are_refused(fabrics: list[str]) -> None:
    node = peers.PeerNode.FromString(encode_node(B))
    del node.fabrics[:]
    node.fabrics.extend(fabrics)
    with pytest.raises(ValueError, match="fabrics"):
        decode_node(node.SerializeToString())
