"""A namespace as a client has it: what both faces know of it, and what they check before a journey begins. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvstore import identity
from kvstore.client import buffers, hints
from kvstore.client.calls import WAIT_MARGIN_S
from kvstore.client.follow_journey import FollowJourney, following
from kvstore.client.held import Held
from kvstore.client.hints import NO_HINTS, Hints
from kvstore.client.journeys import (
    Found,
    Got,
    Journey,
    Load,
    Shape,
    Stored,
    getting,
    holding,
    looking_up,
    putting,
    reserving,
    viewing,
)
from kvstore.client.slots import Filling
from kvstore.client.steps import Keys, Lent, Limits, Look, Reserve, WireHint
from kvstore.layout import KVLayout, Need, NeedKind
from kvstore.wire import convert, framed, store

if TYPE_CHECKING:
    from kvstore.client.calls import Times

KEY_BYTES = 32
REPLICAS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Known:
    """What the node said when the namespace was opened."""

    digest: bytes
    generation: int
    seed: bytes
    family_blocks: int
    clustered: bool

    @staticmethod
    def of(response: store.OpenNamespaceResponse) -> Known:
        node = response.node
        return Known(response.digest, response.generation, response.seed, node.family_blocks, node.clustered)


@dataclass(frozen=True, slots=True)
class Cleared:
    """nodes: that know of it, of nodes_known that there are."""

    generation: int
    nodes: int
    nodes_known: int

    @staticmethod
    def of(response: store.ClearResponse) -> Cleared:
        return Cleared(response.generation, response.nodes, response.nodes_known)


class Choices(NamedTuple):
    """What every verb may be told besides its blocks."""

    shard: int = 0
    hints: Hints = NO_HINTS
    parent: bytes = b""
    position: int = 0
    replicas: int = 1  # of put: on how many hosts


class Space:
    """Shared by the faces. `known` changes when the namespace was cleared and opened again."""

    def __init__(self, layout: KVLayout, tenant: str, registry: buffers.Registry) -> None:
        opening = store.OpenNamespaceRequest(layout=convert.layout_message(layout), tenant=tenant)
        self.request = opening.SerializeToString()
        self.part_bytes: list[list[int]] = [list(shard.part_bytes) for shard in opening.layout.shards]
        self.shard_bytes = tuple(sum(parts) for parts in self.part_bytes)
        self.block_tokens: int = opening.layout.block_tokens
        self.registry = registry
        self.placed: tuple[object, int] | None = None  # the connection it was last opened over, and its handle there
        self._known: Known | None = None
        self._shape: Shape | None = None

    @property
    def known(self) -> Known:
        assert self._known is not None, "opened when it was made"
        return self._known

    def handle_on(self, line: object) -> int | None:
        placed = self.placed
        return placed[1] if placed is not None and placed[0] is line else None

    def adopt(self, known: Known) -> bool:
        """Whether it is the namespace that it was."""
        same = self._known is not None and self._known.digest == known.digest
        self._known = known
        return same

    def is_of(self, other: Space) -> bool:
        """Whether both were last opened as the same generation."""
        mine, others = self._known, other._known
        return mine is not None and others is not None and mine.digest == others.digest

    def shape(self, limits: Limits) -> Shape:
        shape = self._shape
        if shape is None or shape.limits is not limits:  # another node, or its next life
            self._shape = shape = Shape(self.block_tokens, self.shard_bytes, limits)
        return shape

    # ---- journeys, checked ------------------------------------------------------------------------------------------

    def chain(self, tokens: identity.Tokens, extras: Sequence[identity.Extra], parent: bytes | None) -> Keys:
        return identity.chain_keys(parent or self.known.seed, tokens, self.block_tokens, extras)

    def chain_of_hashes(self, hashes: Sequence[bytes], parent: bytes | None) -> Keys:
        return identity.chain_keys_from_hashes(parent or self.known.seed, hashes)

    def lookup(self, limits: Limits, chain: object, needs: Sequence[Need] | None) -> Journey[Found]:
        wanted = tuple(needs or ())
        for i, need in enumerate(wanted):
            if not 0 <= need.shard < len(self.shard_bytes):
                raise ValueError(f"needs[{i}].shard: {need.shard}, must be 0 to {len(self.shard_bytes) - 1}")
            if need.kind == NeedKind.LAST and not 0 < need.blocks < 2**32:
                raise ValueError(f"needs[{i}].blocks: {need.blocks}, must be at least 1 for LAST")
        keys = keys_of(chain)
        far = (lambda: self._looking_far(keys, wanted)) if self.known.clustered else None
        return looking_up(self.shape(limits), keys, wanted, far)

    def _looking_far(self, keys: Keys, needs: Sequence[Need]) -> bytes:
        return store.LookupRequest(
            namespace=self.known.digest,
            chain=store.Chain(keys=keys.tobytes()),
            needs=[
                store.Need(shard=need.shard, kind=store.Need.Kind.ValueType(int(need.kind)), blocks=need.blocks)
                for need in needs
            ],
        ).SerializeToString()

    def get(
        self, limits: Limits, chain: object, into: object, choices: Choices, parts: range | tuple[int, int] | None
    ) -> Journey[Got]:
        keys, size = keys_of(chain), self._size_of(choices.shard)
        part_bytes = self.part_bytes[choices.shard]
        chosen = None if parts is None else parts_of(parts, len(part_bytes))
        if chosen is not None:
            size = sum(part_bytes[chosen[0] : chosen[1]])
        wanted = buffers.Wanted("into", keys.shape[0], size, writing=True)
        places = buffers.places(into, wanted, self.registry)
        hint, clustered = self._hint(keys, choices), self.known.clustered
        return getting(self.shape(limits), choices.shard, keys, places, hint, chosen, clustered=clustered)

    def follow(self, limits: Limits, chain: object, into: object, choices: Choices) -> FollowJourney:
        keys, parts = keys_of(chain), len(self.part_bytes[choices.shard]) if self._size_of(choices.shard) else 0
        wanted = buffers.Wanted("into", keys.shape[0], self._size_of(choices.shard), writing=True)
        places = buffers.places(into, wanted, self.registry)
        hint, clustered = self._hint(keys, choices), self.known.clustered
        return following(self.shape(limits), choices.shard, keys, places, hint, parts, clustered=clustered)

    def put(
        self,
        limits: Limits,
        chain: object,
        source: object,
        metas: Sequence[bytes] | None,
        choices: Choices,
        times: Times,
    ) -> Journey[Stored]:
        keys, shard_bytes = keys_of(chain), self._size_of(choices.shard)
        wanted = buffers.Wanted("source", keys.shape[0], shard_bytes, writing=False)
        places = buffers.places(source, wanted, self.registry)
        load = Load(keys, places, choices.parent, self.metas_of(metas, keys.shape[0], limits))
        if not 1 <= choices.replicas <= REPLICAS_MAX:
            raise ValueError(f"replicas: {choices.replicas}, must be 1 to {REPLICAS_MAX}")
        hint = self._hint(keys, choices)
        more = partial(self._replicating, load, hint, choices, times) if choices.replicas > 1 else None
        return putting(self.shape(limits), choices.shard, load, hint, more)

    def _replicating(self, load: Load, hint: WireHint, choices: Choices, times: Times) -> bytes:
        return framed.ReplicateRequest(
            namespace=self.known.digest,
            shard=choices.shard,
            chain=store.Chain(keys=load.keys.tobytes(), parent=load.parent, position=hint.position),
            hints=hints.hints_of(hint),
            replicas=choices.replicas,
            deadline_ms=max(1, round(max(times.left() - WAIT_MARGIN_S, times.left() / 2) * 1e3)),
        ).SerializeToString()

    def hold(self, limits: Limits, chain: object, choices: Choices) -> Journey[Held]:
        keys = keys_of(chain)
        self._size_of(choices.shard)
        hint, clustered = self._hint(keys, choices), self.known.clustered
        return holding(self.shape(limits), choices.shard, keys, hint, clustered=clustered)

    def view(self, limits: Limits, chain: object, follow: bool, choices: Choices) -> Journey[Lent]:
        keys = keys_of(chain)
        self._size_of(choices.shard)
        look = Look(choices.shard, keys, self._hint(keys, choices), follow)
        return viewing(self.shape(limits), look, clustered=self.known.clustered and not follow)

    def reserve(
        self, limits: Limits, chain: object, metas: Sequence[bytes] | None, choices: Choices
    ) -> Journey[Filling]:
        keys = keys_of(chain)
        self._size_of(choices.shard)
        hint, told = self._hint(keys, choices), self.metas_of(metas, keys.shape[0], limits)
        taken = yield from reserving(self.shape(limits), Reserve(choices.shard, keys, hint, choices.parent, told))
        return Filling(taken, self.part_bytes[choices.shard], self.registry)

    def prefetching(self, chain: object, shards: Sequence[int], hints_given: Hints) -> bytes:
        for shard in shards:
            self._size_of(shard)
        named = store.Chain(keys=keys_of(chain).tobytes())
        told = hints.to_message(hints_given)
        return store.PrefetchRequest(
            namespace=self.known.digest, shards=shards, chain=named, hints=told
        ).SerializeToString()

    def metas_of(self, metas: Sequence[bytes] | None, blocks: int, limits: Limits) -> tuple[bytes, ...]:
        if metas is None:
            return ()
        if len(metas) != blocks:
            raise ValueError(f"metas: {len(metas)}, must be one a block, {blocks}")
        for i, meta in enumerate(metas):
            if len(meta) > limits.meta_bytes_max:
                raise ValueError(f"metas[{i}]: {len(meta)} bytes, must be at most {limits.meta_bytes_max}")
        return tuple(bytes(meta) for meta in metas)

    def _size_of(self, shard: int) -> int:
        if not 0 <= shard < len(self.shard_bytes):
            raise ValueError(f"shard: {shard}, must be 0 to {len(self.shard_bytes) - 1}")
        return self.shard_bytes[shard]

    def _hint(self, keys: Keys, choices: Choices) -> WireHint:
        return hints.to_wire(choices.hints, keys, self.known.family_blocks, choices.position)


def keys_of(chain: object) -> Keys:
    """A chain as (n, 32) uint8 in one piece. ValueError and TypeError name `chain`."""
    if not isinstance(chain, np.ndarray):
        raise TypeError(f"chain: {type(chain).__name__}, must be the array that ns.chain() gives")
    if chain.dtype != np.uint8 or chain.ndim != 2 or chain.shape[1] != KEY_BYTES:
        raise ValueError(f"chain: {chain.dtype} {chain.shape}, must be uint8 (blocks, {KEY_BYTES})")
    return np.ascontiguousarray(chain)


def parts_of(parts: object, count: int) -> tuple[int, int]:
    """First and end of the parts of a block, of which there are `count`."""
    if isinstance(parts, range) and parts.step == 1:
        first, end = parts.start, parts.stop
    elif isinstance(parts, tuple) and len(parts) == 2 and all(type(one) is int for one in parts):
        first, end = parts
    else:
        raise TypeError(f"parts: {parts!r}, must be (first, end), or a range without gaps")
    if not 0 <= first < end <= count:
        raise ValueError(f"parts: {parts!r}, must be at least one of {count}, from 0")
    return first, end


def parent_of(parent: object) -> bytes:
    """The key before a chain's first, given as bytes or as a row of another chain."""
    if parent is None:
        return b""
    raw = parent.tobytes() if isinstance(parent, np.ndarray) and parent.dtype == np.uint8 else parent
    if not isinstance(raw, bytes) or len(raw) != KEY_BYTES:
        raise ValueError(f"parent: must be a key of {KEY_BYTES} bytes")
    return raw
