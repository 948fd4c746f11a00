"""What other nodes ask of this one over its framed door. Until a connection has introduced itself it is nobody's."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvstore.errors import Misconfigured
from kvstore.node.auth import Denied
from kvstore.node.introduction import NONCE_BYTES, Introduction
from kvstore.wire import claims, convert, peers, store

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kvstore.directory.base import Member
    from kvstore.node.clearing import Clearing

__all__ = ["METHODS", "PeerDesk"]

log = logging.getLogger(__name__)

METHODS: Final = claims.METHODS | {
    store.METHOD_PEER_CHALLENGE,
    store.METHOD_PEER_HELLO,
    store.METHOD_PEER_PING,
    store.METHOD_PEER_GENERATIONS,
}
REFUSALS_REMEMBERED: Final = 256  # each is logged once, and again only after so many others


@dataclass(slots=True)
class PeerDesk:
    """me: this node; None: it is not (yet) in a cluster. welcome: told of each node that has introduced itself; why it
    may not stay, or nothing. directory: what one that has introduced itself tells or asks by claims.METHODS.
    clearing: what this node knows of clears, once it has a name.

    Everything is kept by connection, of which the door has a limited number, until `gone`.
    """

    introduction: Introduction
    me: Callable[[], Member | None]
    welcome: Callable[[Member], str | None]
    directory: Callable[[Member, int, bytes], bytes]
    clearing: Callable[[], Clearing]
    _asked: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)  # nonces of introductions under way
    _peers: dict[int, Member] = field(default_factory=dict)
    _refused: dict[str, None] = field(default_factory=dict)

    def peer(self, connection: int) -> Member:
        """The node at the other end. Raises Denied where none has introduced itself."""
        member = self._peers.get(connection)
        if member is None:
            raise Denied("peer: only nodes of this cluster may ask this", known=False)
        return member

    def knows(self, connection: int) -> bool:
        """Whether a node has introduced itself there."""
        return connection in self._peers

    def introduced(self) -> list[Member]:
        """Who has introduced himself, and is connected still."""
        return list(self._peers.values())

    def gone(self, connection: int) -> None:
        self._asked.pop(connection, None)
        self._peers.pop(connection, None)

    def call(self, connection: int, method: int, body: bytes) -> bytes:
        """One CALL of METHODS. Raises Denied, Unavailable, ValueError naming the field."""
        me = self.me()
        if me is None:
            raise Denied("peer: this node is in no cluster (cluster.members)", known=False)
        if method in claims.METHODS:
            return self.directory(self.peer(connection), method, body)
        if method == store.METHOD_PEER_GENERATIONS:
            self.peer(connection)
            return self.clearing().handle(body)
        answer: Message
        try:
            match method:
                case store.METHOD_PEER_CHALLENGE:
                    answer = self._challenged(connection, me, peers.PeerChallengeRequest.FromString(body))
                case store.METHOD_PEER_HELLO:
                    answer = self._met(connection, peers.PeerHelloRequest.FromString(body))
                case store.METHOD_PEER_PING:
                    self.peer(connection)
                    answer = peers.PeerPingResponse(incarnation=me.incarnation, generations=self.clearing().hash)
                case _:
                    raise ValueError(f"method: {method} is none of nodes")
        except convert.DecodeError as error:
            raise ValueError("body: not a message of this method") from error
        return answer.SerializeToString()

    def _challenged(
        self, connection: int, me: Member, request: peers.PeerChallengeRequest
    ) -> peers.PeerChallengeResponse:
        nonce = secrets.token_bytes(NONCE_BYTES)
        answer = self.introduction.answer(request.nonce, nonce, me)
        self._asked[connection] = (request.nonce, nonce)
        return answer

    def _met(self, connection: int, hello: peers.PeerHelloRequest) -> peers.PeerHelloResponse:
        nonces = self._asked.pop(connection, None)  # each holds for one try
        if nonces is None:
            raise ValueError("hello: comes after a challenge")
        try:
            member = self.introduction.met(*nonces, hello)
        except Misconfigured as error:
            return self._refuse(str(error))
        why = self.welcome(member)
        if why is not None:
            return self._refuse(why)
        self._peers[connection] = member
        return peers.PeerHelloResponse()

    def _refuse(self, why: str) -> peers.PeerHelloResponse:
        if why not in self._refused:
            log.error("a node is refused: %s", why)
            self._refused[why] = None
            if len(self._refused) > REFUSALS_REMEMBERED:
                del self._refused[next(iter(self._refused))]
        return peers.PeerHelloResponse(refusal=why)
