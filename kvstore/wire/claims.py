"""Between the directory's messages and bytes. Pure. What another node wrote is checked: ValueError names the field."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from kvstore.directory.base import ID_BYTES
from kvstore.directory.messages import (
    PUBLISHING,
    Announce,
    Answer,
    Digest,
    DigestAnswer,
    Locate,
    LocateAnswer,
    Rows,
    Status,
    Taken,
)
from kvstore.directory.messages import Message as Told
from kvstore.wire import peers, store

__all__ = ["METHODS", "answer_bytes", "answer_of", "message_bytes", "message_of", "method_of"]

METHODS: Final = frozenset({store.METHOD_PEER_ANNOUNCE, store.METHOD_PEER_DIGEST, store.METHOD_PEER_LOCATE})
DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 16
BUCKETS: Final = 64
TIERS: Final = (0, 1, 2, PUBLISHING)  # memory, files and what is coming into memory are claimed, nothing else

_STRANGE: Final = np.ones(256, np.bool_)  # by tier; a look up costs a tenth of np.isin()
_STRANGE[list(TIERS)] = False

Number = TypeVar("Number", bound=np.generic)
Wire = TypeVar("Wire", bound=Message)


def method_of(message: Told) -> int:
    match message:
        case Announce():
            return store.METHOD_PEER_ANNOUNCE
        case Digest():
            return store.METHOD_PEER_DIGEST
        case _:
            return store.METHOD_PEER_LOCATE


def message_bytes(message: Told) -> bytes:
    """Who speaks is known by the connection, and not said."""
    match message:
        case Announce():
            rows = [
                peers.PeerRows(
                    namespace=each.ns,
                    keys=each.keys.tobytes(),
                    shards=each.shards.astype("<u8").tobytes(),
                    tiers=each.tiers.tobytes(),
                )
                for each in message.rows
            ]
            return peers.PeerAnnounceRequest(
                sequence=message.sequence, rows=rows, cleared=message.cleared, begin=message.begin, end=message.end
            ).SerializeToString()
        case Digest():
            return peers.PeerDigestRequest(
                sequence=message.sequence, buckets=message.buckets.astype("<u8").tobytes(), valid=message.valid
            ).SerializeToString()
        case _:
            return peers.PeerLocateRequest(
                namespace=message.ns, keys=message.keys.tobytes(), spread=message.spread
            ).SerializeToString()


def message_of(method: int, body: bytes, node: bytes, incarnation: int) -> Told:
    """What the node at the other end says."""
    if method == store.METHOD_PEER_ANNOUNCE:
        told = _parsed(peers.PeerAnnounceRequest, body)
        rows = tuple(_rows(f"rows[{i}]", each) for i, each in enumerate(told.rows))
        cleared = tuple(_sized("cleared", each, DIGEST_BYTES) for each in told.cleared)
        return Announce(node, incarnation, told.sequence, rows, cleared, told.begin, told.end)
    if method == store.METHOD_PEER_DIGEST:
        digest = _parsed(peers.PeerDigestRequest, body)
        buckets = _numbers("buckets", digest.buckets, np.dtype("<u8"), BUCKETS)
        return Digest(node, incarnation, digest.sequence, buckets.astype(np.uint64), digest.valid)
    asked = _parsed(peers.PeerLocateRequest, body)
    return Locate(_sized("namespace", asked.namespace, DIGEST_BYTES), _keys("keys", asked.keys), asked.spread)


def answer_bytes(answer: Answer) -> bytes:
    status = peers.PeerStatus.ValueType(int(answer.status))
    match answer:
        case Taken():
            return peers.PeerAnnounceResponse(status=status).SerializeToString()
        case DigestAnswer():
            return peers.PeerDigestResponse(status=status, differ=answer.differ).SerializeToString()
        case _:
            return peers.PeerLocateResponse(
                status=status,
                nodes=answer.nodes,
                counts=answer.counts.tobytes(),
                holders=answer.holders.astype("<u2").tobytes(),
                shards=answer.shards.astype("<u8").tobytes(),
                tiers=answer.tiers.tobytes(),
                view=answer.view,
            ).SerializeToString()


def answer_of(message: Told, body: bytes) -> Answer:
    """What was answered to `message`."""
    match message:
        case Announce():
            return Taken(_status(_parsed(peers.PeerAnnounceResponse, body).status))
        case Digest():
            digest = _parsed(peers.PeerDigestResponse, body)
            return DigestAnswer(_status(digest.status), digest.differ)
        case _:
            return _located(_parsed(peers.PeerLocateResponse, body), len(message.keys))


def _located(told: peers.PeerLocateResponse, keys: int) -> LocateAnswer:
    counts = _numbers("counts", told.counts, np.dtype(np.uint8), keys)
    count = int(counts.sum(dtype=np.int64))
    holders = _numbers("holders", told.holders, np.dtype("<u2"), count)
    if count and int(holders.max()) >= len(told.nodes):
        raise ValueError(f"holders: {int(holders.max())}, of {len(told.nodes)} nodes")
    return LocateAnswer(
        _status(told.status),
        tuple(_sized("nodes", node, ID_BYTES) for node in told.nodes),
        counts,
        holders.astype(np.uint16),
        _numbers("shards", told.shards, np.dtype("<u8"), count).astype(np.uint64),
        _tiers("tiers", told.tiers, count),
        told.view,
    )


def _rows(field: str, told: peers.PeerRows) -> Rows:
    keys = _keys(f"{field}.keys", told.keys)
    shards = _numbers(f"{field}.shards", told.shards, np.dtype("<u8"), len(keys)).astype(np.uint64)
    tiers = _tiers(f"{field}.tiers", told.tiers, len(keys))
    return Rows(_sized(f"{field}.namespace", told.namespace, DIGEST_BYTES), keys, shards, tiers)


def _parsed(kind: type[Wire], body: bytes) -> Wire:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise ValueError("body: not a message of this method") from error


def _status(told: int) -> Status:
    try:
        return Status(told)
    except ValueError:
        raise ValueError(f"status: {told} is none") from None


def _sized(field: str, told: bytes, size: int) -> bytes:
    if len(told) != size:
        raise ValueError(f"{field}: {len(told)} bytes, must be {size}")
    return told


def _keys(field: str, told: bytes) -> npt.NDArray[np.uint8]:
    if len(told) % KEY_BYTES:
        raise ValueError(f"{field}: {len(told)} bytes, must be a multiple of {KEY_BYTES}")
    return np.frombuffer(told, np.uint8).reshape(-1, KEY_BYTES)


def _tiers(field: str, told: bytes, count: int) -> npt.NDArray[np.uint8]:
    tiers = _numbers(field, told, np.dtype(np.uint8), count)
    strange = _STRANGE[tiers]
    if strange.any():
        raise ValueError(f"{field}: {int(tiers[strange][0])}, must be one of {TIERS}")
    return tiers


def _numbers(field: str, told: bytes, kind: np.dtype[Number], count: int) -> npt.NDArray[Number]:
    if len(told) != count * kind.itemsize:
        raise ValueError(f"{field}: {len(told)} bytes, must be {count * kind.itemsize}")
    return np.frombuffer(told, kind)
