"""Between messages and what the node works with. Pure. Everything a caller wrote is checked here, once, for both doors.

Raises ValueError that begins with the field's path in the request, or Rejected naming the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.message import DecodeError

from kvstore import native
from kvstore.errors import Rejected
from kvstore.identity import NamespaceIdentity
from kvstore.layout import PARTS_MAX, SHARDS_MAX, KVLayout, Shard
from kvstore.wire import store
from kvstore.wire.labels import label_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "KEY_BYTES",
    "DecodeError",
    "check_label",
    "check_metas",
    "check_shard",
    "check_shards",
    "event",
    "hint",
    "identity_of",
    "keys",
    "layout_message",
    "needs",
    "shard_messages",
]

KEY_BYTES: Final = 32
LABEL_BYTES_MAX: Final = 255
NEEDS_MAX: Final = 64


def keys(chain: store.Chain, seed: bytes, block_tokens: int, keys_max: int) -> NDArray[np.uint8]:
    """The chain's keys, (n, 32), made here where the caller sent tokens or hashes."""
    if chain.parent and len(chain.parent) != KEY_BYTES:
        raise ValueError(f"chain.parent: {len(chain.parent)} bytes, must be {KEY_BYTES}, or none")
    named = chain.WhichOneof("name")
    if chain.position and not chain.parent and named != "keys":
        raise ValueError("chain.position: the chain begins a prompt, as it has no parent")
    parent = chain.parent or seed
    if named == "keys":
        if len(chain.keys) % KEY_BYTES:
            raise ValueError(f"chain.keys: {len(chain.keys)} bytes, must be a multiple of {KEY_BYTES}")
        _check_count(len(chain.keys) // KEY_BYTES, keys_max)
        return np.frombuffer(chain.keys, dtype=np.uint8).reshape(-1, KEY_BYTES)
    if named == "tokens":
        tokens = np.array(chain.tokens.ids, dtype=np.uint32)
        _check_count(len(tokens) // block_tokens, keys_max)
        extras = [(int(e.kind), e.first, e.end, e.value) for e in chain.tokens.extras]
        return _made("chain.tokens", lambda: native.keys_chain(parent, tokens, block_tokens, extras))
    if named == "hashes":
        _check_count(len(chain.hashes.values), keys_max)
        return _made("chain.hashes", lambda: native.keys_chain_hashes(parent, list(chain.hashes.values)))
    raise ValueError("chain: must have keys, tokens or hashes")


def _check_count(count: int, keys_max: int) -> None:
    if count > keys_max:
        raise Rejected(f"chain: {count} blocks, at most {keys_max} a call", limit="keys_per_call_max")


def _made(field: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def check_label(field: str, label: str) -> None:
    if len(label.encode()) > LABEL_BYTES_MAX:
        raise ValueError(f"{field}: longer than {LABEL_BYTES_MAX} bytes")


def hint(
    hints: store.Hints, chain_keys: NDArray[np.uint8], family_blocks: int, position: int, first: int
) -> native.Hint:
    """Hints as numbers, for a run that begins with block `first` of a chain that begins at `position` of its prompt.

    A chain given from its prompt's start makes its own family: its block `family_blocks` - 1.
    """
    check_label("hints.family", hints.family)
    check_label("hints.session", hints.session)
    if hints.priority not in {-1, 0, 1}:
        raise ValueError(f"hints.priority: {hints.priority}, must be -1, 0 or 1")
    family = label_id(hints.family) or hints.family_id
    if family == 0 and position == 0 and len(chain_keys):
        family = int.from_bytes(chain_keys[min(family_blocks, len(chain_keys)) - 1, :8].tobytes(), "little")
    session = label_id(hints.session) or hints.session_id
    return native.Hint(
        family=family,
        session=session,
        turn=hints.turn,
        expected_return_ms=hints.expected_return_ms,
        priority=hints.priority,
        end=hints.end,
        position=position + first,
    )


def identity_of(message: store.Layout, tenant: str) -> NamespaceIdentity:
    """The namespace that a description and a tenant make, not yet cleared. ValueError names the field."""
    try:
        return NamespaceIdentity(
            engine=message.engine,
            model=message.model,
            revision=message.revision,
            dtype=message.dtype,
            block_tokens=message.block_tokens,
            shards=tuple(
                Shard(shard.group, shard.rank, tuple(shard.part_bytes[: PARTS_MAX + 1]))
                for shard in message.shards[: SHARDS_MAX + 1]
            ),
            fingerprint=message.fingerprint,
            tenant=tenant,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("tenant") else f"layout.{error}") from error


def layout_message(layout: KVLayout | NamespaceIdentity) -> store.Layout:
    """What identifies a layout, or the layout of a namespace."""
    fingerprint = layout.fingerprint if isinstance(layout, NamespaceIdentity) else layout.fingerprint()
    return store.Layout(
        engine=layout.engine,
        model=layout.model,
        revision=layout.revision,
        dtype=layout.dtype,
        block_tokens=layout.block_tokens,
        shards=shard_messages(layout.shards),
        fingerprint=fingerprint,
    )


def shard_messages(shards: Sequence[Shard]) -> list[store.Shard]:
    return [store.Shard(part_bytes=shard.part_bytes, group=shard.group, rank=shard.rank) for shard in shards]


def needs(messages: Sequence[store.Need], shards: int) -> list[tuple[int, int, int]]:
    """(shard, kind, blocks) each; none given: all of shard 0, which the core knows."""
    if len(messages) > NEEDS_MAX:
        raise ValueError(f"needs: {len(messages)}, at most {NEEDS_MAX}")
    for i, need in enumerate(messages):
        check_shard(f"needs[{i}].shard", need.shard, shards)
        if need.kind not in store.Need.Kind.values():
            raise ValueError(f"needs[{i}].kind: {need.kind} is none")
    return [(need.shard, int(need.kind), need.blocks) for need in messages]


def check_shard(field: str, shard: int, count: int) -> None:
    if shard >= count:
        raise ValueError(f"{field}: {shard}, but the namespace has {count}")


def check_shards(shards: Sequence[int], count: int) -> None:
    for i, shard in enumerate(shards):
        check_shard(f"shards[{i}]", shard, count)


def check_metas(field: str, metas: Sequence[bytes], blocks: int) -> None:
    """None, or one a block."""
    if metas and len(metas) != blocks:
        raise ValueError(f"{field}: {len(metas)} of them, but {blocks} blocks are put")
    if any(len(meta) > native.META_BYTES_MAX for meta in metas):
        raise ValueError(f"{field}: at most {native.META_BYTES_MAX} bytes each")


def held_event(digest: bytes, shard: int, tier: int, key: bytes, parent: bytes, meta: bytes) -> store.Event:
    """Of what is held, which is no news: sequence 0."""
    return store.Event(
        kind=store.Event.STORED,
        namespace=digest,
        shard=shard,
        tier=store.Tier.ValueType(tier),
        key=key,
        parent=parent if any(parent) else b"",
        meta=meta,
    )


def event(told: native.Event, digest: bytes) -> store.Event:
    return store.Event(
        sequence=told.sequence,
        kind=store.Event.Kind.ValueType(int(told.kind)),
        namespace=digest,
        shard=told.shard,
        tier=store.Tier.ValueType(int(told.tier)),
        key=told.key,
        parent=told.parent if any(told.parent) else b"",
        meta=told.meta,
    )
