"""How two nodes of a cluster get to know each other: both show that they have its secret, neither sends it. Pure.

    asking                                    answering
    Challenge(nonce A)                 --->
                                       <---   nonce B, node, settings, HMAC("answers", A, B, node)
    settings differ: named, both values.  proof wrong: not of this cluster
    PeerHello(node, settings, HMAC("asks", A, B, node)) --->
                                       <---   welcome, or why not

Why so, and not by a certificate or a token alone: a certificate that the cluster's authority signed may be a client's,
and a bearer token is lost to whoever happens to listen at an address of the list. What is shown here is of no use for
another connection, and a tenant's or an operator's token shows nothing of it. TLS, where nodes speak it, seals what
follows; without it nothing leaves the machine.
"""

from __future__ import annotations

import hmac
from typing import Final

from kvstore.directory.agreement import Settings, check_table, difference
from kvstore.directory.base import ID_BYTES, TEXT_MAX, TEXTS, Member
from kvstore.errors import Misconfigured
from kvstore.wire import convert, peers
from transfer.offers import FABRICS_MAX

__all__ = ["NONCE_BYTES", "Introduction", "pass_token"]

NONCE_BYTES: Final = 32


def pass_token(secret: bytes) -> bytes:
    """What a node shows to the door's HELLO where that asks for a token. It opens nothing but the way to Challenge: who
    steals it may try to introduce himself.
    """
    return hmac.digest(secret, b"kvstore door of nodes 1", "sha256").hex().encode()


class Introduction:
    """One node's part in either role."""

    def __init__(self, secret: bytes, settings: Settings) -> None:
        self._key = hmac.digest(secret, b"kvstore nodes 1", "sha256")
        self._settings = dict(settings)

    def _proof(self, role: bytes, asking: bytes, answering: bytes, node: bytes) -> bytes:
        return hmac.digest(self._key, role + asking + answering + node, "sha256")

    # ---- answering ------------------------------------------------------------------------------------------------

    def answer(self, asking: bytes, answering: bytes, me: Member) -> peers.PeerChallengeResponse:
        """ValueError where the nonce is none."""
        if len(asking) != NONCE_BYTES:
            raise ValueError(f"nonce: {len(asking)} bytes, must be {NONCE_BYTES}")
        node = encode_node(me)
        return peers.PeerChallengeResponse(
            nonce=answering,
            node=node,
            settings=self._settings,
            proof=self._proof(b"answers", asking, answering, node),
        )

    def met(self, asking: bytes, answering: bytes, hello: peers.PeerHelloRequest) -> Member:
        """Who has introduced himself. Misconfigured says why he is not believed, in a sentence for both logs."""
        return self._believed(b"asks", asking, answering, hello.node, hello.settings, hello.proof)

    # ---- asking ---------------------------------------------------------------------------------------------------

    def hello(self, asking: bytes, answering: bytes, me: Member) -> peers.PeerHelloRequest:
        node = encode_node(me)
        proof = self._proof(b"asks", asking, answering, node)
        return peers.PeerHelloRequest(node=node, settings=self._settings, proof=proof)

    def found(self, asking: bytes, told: peers.PeerChallengeResponse) -> Member:
        """Who has answered. Raises as `met`."""
        if len(told.nonce) != NONCE_BYTES:
            raise Misconfigured(f"nonce: {len(told.nonce)} bytes, must be {NONCE_BYTES}")
        return self._believed(b"answers", asking, told.nonce, told.node, told.settings, told.proof)

    def _believed(
        self, role: bytes, asking: bytes, answering: bytes, node: bytes, settings: Settings, proof: bytes
    ) -> Member:
        """Settings first: which of them differs can be said only before the proof, which it makes fail."""
        try:
            member, table = decode_node(node), check_table(settings)
        except ValueError as error:
            raise Misconfigured(str(error)) from error
        differs = difference(self._settings, table, f"{member.name} ({member.address})")
        if differs is not None:
            raise Misconfigured(differs)
        if not hmac.compare_digest(proof, self._proof(role, asking, answering, node)):
            raise Misconfigured(f"cluster.secret_file: {member.address} has not shown that it has the cluster's secret")
        return member


def encode_node(member: Member) -> bytes:
    return peers.PeerNode(
        id=member.id,
        incarnation=member.incarnation,
        name=member.name,
        address=member.address,
        grpc=member.grpc,
        host=member.host,
        version=member.version,
        fabrics=member.fabrics,
    ).SerializeToString()


def decode_node(raw: bytes) -> Member:
    """ValueError names the field."""
    try:
        node = peers.PeerNode.FromString(raw)
    except convert.DecodeError as error:
        raise ValueError("node: not a message") from error
    texts: dict[str, str] = {}
    for name in TEXTS:
        text = getattr(node, name)
        if len(text) > TEXT_MAX or not text.isprintable():
            raise ValueError(f"node.{name}: must be a printable text of at most {TEXT_MAX} characters")
        texts[name] = text
    if len(node.id) != ID_BYTES or not node.address:
        raise ValueError(f"node.id: must have {ID_BYTES} bytes; node.address: needed")
    fabrics = tuple(node.fabrics)
    if len(fabrics) > FABRICS_MAX or not all(0 < len(one) <= TEXT_MAX and one.isprintable() for one in fabrics):
        raise ValueError(f"node.fabrics: at most {FABRICS_MAX} printable texts of at most {TEXT_MAX} characters")
    return Member(id=node.id, incarnation=node.incarnation, fabrics=fabrics, **texts)
