"""A client's steps as messages of the public contract, for both faces. No I/O: the channels in grpc.py and
grpc_aio.py have it.

Bytes ride in messages: a put gathers each block once into bytes, a get copies each once out of them, hashing as it
goes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from kvstore import native
from kvstore.client.calls import Times
from kvstore.client.steps import Fetch, Limits, Lookup, Put, PutOutcome, Status, Told, WireHint
from kvstore.wire import errors, store

if TYPE_CHECKING:
    from kvstore.client.buffers import Places
    from kvstore.client.space import Space

MESSAGE_ROOM: Final = 4096  # of a message, for what is not payload
WINDOW_BYTES: Final = 32 << 20  # gathered at once for a put
UNIX_ONLY: Final = Told(
    Status.REJECTED, field="address", reason="views and reservations need the node's own machine: connect to unix:PATH"
)

_STATUS: Final = {
    grpc.StatusCode.NOT_FOUND: Status.STALE_NAMESPACE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Status.REJECTED,
    grpc.StatusCode.INVALID_ARGUMENT: Status.BAD_INPUT,
    grpc.StatusCode.UNAUTHENTICATED: Status.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: Status.DENIED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Status.LATE,
    grpc.StatusCode.CANCELLED: Status.CANCELLED,
}
_OUTCOME_OF: Final[Mapping[int, PutOutcome]] = MappingProxyType(
    {
        store.PUT_STORED: PutOutcome.STORED,
        store.PUT_HELD: PutOutcome.HELD,
        store.PUT_PENDING: PutOutcome.PENDING,
        store.PUT_REJECTED: PutOutcome.FULL,
        store.PUT_TOO_LARGE: PutOutcome.TOO_LARGE,
    }
)
_OUTCOMES: Final = bytes(_OUTCOME_OF.get(status, PutOutcome.LAPSED) for status in range(256))


class Failure(Protocol):
    """What an RpcError of either kind of channel has."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> object: ...


def told_of(failure: Failure, landed: Landing | None = None) -> Told:
    """A failed call as an answer; what had landed before counts."""
    detail = store.ErrorDetail(reason=failure.details() or "")
    trailing = failure.trailing_metadata()
    if isinstance(trailing, Sequence | grpc.aio.Metadata):
        for key, value in trailing:
            if key == errors.DETAIL_KEY and isinstance(value, bytes):
                try:
                    detail = store.ErrorDetail.FromString(value)
                except DecodeError:
                    break
    status = _STATUS.get(failure.code(), Status.UNAVAILABLE)
    arrived = landed or Landing(None, [], verify=False)
    return Told(
        status,
        field=detail.field,
        reason=detail.reason,
        limit=detail.limit,
        blocks=arrived.blocks,
        blocks_corrupt=arrived.corrupt,
        bytes=arrived.moved,
        tiers=bytes(arrived.tiers),
    )


def limits_of(info: store.NodeInfo) -> Limits:
    """As the journeys count: a window is what a put gathers at once."""
    keys_max = min(info.keys_per_call_max, (info.message_bytes_max - MESSAGE_ROOM) // 32)
    return Limits(keys_max, min(info.window_bytes, WINDOW_BYTES), native.META_BYTES_MAX, info.hold_wait_ms_max / 1e3)


def hints_of(hint: WireHint) -> store.Hints:
    return store.Hints(
        family=hint.label,
        family_id=0 if hint.label else hint.family,
        session_id=hint.session,
        turn=hint.turn,
        end=hint.end,
        expected_return_ms=hint.expected_return_ms,
        priority=hint.priority,
    )


def lookup_request(space: Space, step: Lookup) -> store.LookupRequest:
    needs = [
        store.Need(shard=need.shard, kind=store.Need.Kind.ValueType(int(need.kind)), blocks=need.blocks)
        for need in step.needs
    ]
    return store.LookupRequest(namespace=space.known.digest, chain=store.Chain(keys=step.keys.tobytes()), needs=needs)


def get_request(space: Space, step: Fetch, limits: Limits, times: Times) -> store.GetRequest:
    wait_s = times.wait(times.left(), limits)
    return store.GetRequest(
        namespace=space.known.digest,
        shard=step.shard,
        chain=store.Chain(keys=step.keys.tobytes(), position=step.hint.position),
        wait_ms=max(1, round(wait_s * 1e3)),
        hints=hints_of(step.hint),
    )


def places_of(places: Places, block: int) -> list[ctypes.Array[ctypes.c_char]]:
    """The pieces of one block as writable buffers, over the caller's memory."""
    first = block * places.pieces
    lengths = places.lengths if places.lengths.shape[0] == places.pieces else places.lengths[first:]
    return [
        (ctypes.c_char * int(lengths[i])).from_address(int(places.addresses[first + i])) for i in range(places.pieces)
    ]


class Landing:
    """Takes the messages of a Get into the caller's memory, block by block, each verified as it is copied."""

    def __init__(self, places: Places | None, part_bytes: Sequence[int], *, verify: bool) -> None:
        self._places, self._part_bytes, self._verify = places, list(part_bytes), verify
        self._block_bytes = sum(self._part_bytes)
        self._block: store.GetBlock | None = None
        self._pieces: list[bytes] = []
        self._gathered = 0
        self.blocks = 0
        self.corrupt = 0
        self.tiers = bytearray()
        self.ended = False

    @property
    def moved(self) -> int:
        return self.blocks * self._block_bytes

    def take(self, message: store.GetResponse) -> None:
        """`ended` says when nothing more is wanted: the end was told, or a block did not verify."""
        kind = message.WhichOneof("message")
        if kind == "end":
            self.ended = True
        elif kind == "block":
            self._block, self._gathered = message.block, 0
            self._pieces.clear()
            if message.block.index != self.blocks:
                self._refuse()
        elif kind == "data" and self._block is not None:
            self._pieces.append(message.data.payload)
            self._gathered += len(message.data.payload)
            if self._gathered > self._block_bytes:
                self._refuse()
            elif self._gathered == self._block_bytes:
                self._land(self._block)

    def _land(self, block: store.GetBlock) -> None:
        assert self._places is not None
        sums = native.copy_parts(places_of(self._places, self.blocks), self._pieces, self._part_bytes)
        if self._verify and sums.astype("<u8").tobytes() != block.checksums:
            self._refuse()
            return
        self.blocks += 1
        self.tiers.append(block.tier)
        self._block = None

    def _refuse(self) -> None:
        self.corrupt += 1
        self.ended = True

    def told(self) -> Told:
        return Told(blocks=self.blocks, blocks_corrupt=self.corrupt, bytes=self.moved, tiers=bytes(self.tiers))


@dataclass(frozen=True, slots=True)
class Sending:
    """The blocks of a put from `first` on, gathered and hashed; those before are held already."""

    first: int
    header: store.PutHeader
    blocks: Sequence[bytes]
    data_bytes: int

    def messages(self) -> Iterator[store.PutRequest]:
        yield store.PutRequest(header=self.header)
        for block in self.blocks:
            for at in range(0, len(block), self.data_bytes):
                piece = block if len(block) <= self.data_bytes else block[at : at + self.data_bytes]
                yield store.PutRequest(data=store.PutData(payload=piece))


def held_request(space: Space, step: Put) -> store.LookupRequest:
    """How much of a put is in the store already, so that those bytes need not travel."""
    return store.LookupRequest(
        namespace=space.known.digest,
        chain=store.Chain(keys=step.keys.tobytes()),
        needs=[store.Need(shard=step.shard)],
    )


def sending(space: Space, step: Put, held: int, message_bytes_max: int) -> Sending:
    part_bytes = space.part_bytes[step.shard]
    blocks = [b"".join(places_of(step.places, i)) for i in range(held, step.keys.shape[0])]
    sums = [native.part_checksums(block, part_bytes).astype("<u8").tobytes() for block in blocks]
    parent = step.keys[held - 1].tobytes() if held else step.parent
    header = store.PutHeader(
        namespace=space.known.digest,
        shard=step.shard,
        chain=store.Chain(keys=step.keys[held:].tobytes(), parent=parent, position=step.hint.position + held),
        checksums=b"".join(sums),
        meta=step.metas[held:],
        hints=hints_of(step.hint),
    )
    return Sending(held, header, blocks, message_bytes_max - MESSAGE_ROOM)


def put_told(sent: Sending, response: store.PutResponse) -> Told:
    outcomes = bytes([PutOutcome.HELD]) * sent.first + response.statuses.translate(_OUTCOMES)
    return Told(blocks=response.stored, bytes=sum(map(len, sent.blocks)), outcomes=outcomes)


def held_told(blocks: int) -> Told:
    return Told(outcomes=bytes([PutOutcome.HELD]) * blocks)


def lookup_told(response: store.LookupResponse) -> Told:
    return Told(blocks=response.blocks, tiers=response.tiers, fetch_s=response.fetch_s)
