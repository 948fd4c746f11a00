"""Who a block is: the namespace it belongs to, and the key that the prefix gives it.

A key is SHA-256 over the key before it, the block's tokens and its extras; the first is chained from the
namespace's seed, which is HMAC(secret, tenant, namespace digest). docs/format/keys.md defines all of it byte by
byte. Nothing here depends on the process: not on its hash seed, its platform or the order of a dict.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.encoding import Canonical
from kvstore.layout import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCK_TOKENS_MAX, PARTS_MAX, SHARDS_MAX, KVLayout, Shard

__all__ = [
    "FORMAT_VERSION",
    "KEY_BYTES",
    "SECRET_BYTES_MIN",
    "Digest",
    "Embeds",
    "Extra",
    "Keys",
    "Lora",
    "Multimodal",
    "NamespaceIdentity",
    "Salt",
    "Seed",
    "Tokens",
    "chain_keys",
    "chain_keys_encoded",
    "chain_keys_from_hashes",
    "namespace_digest",
    "namespace_seed",
]

FORMAT_VERSION = 1  # of slots, headers and packs: blocks of another one are in another namespace
KEY_BYTES = 32
SECRET_BYTES_MIN = 16
NAME_BYTES_MAX = 255
TOKEN_MAX = (1 << 32) - 1

Digest = NewType("Digest", bytes)  # names a namespace; 32 bytes
Seed = NewType("Seed", bytes)  # the parent of a chain's first key; 32 bytes
Keys: TypeAlias = npt.NDArray[np.uint8]  # shape (n, 32), in chain order
Tokens: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.uint32] | npt.NDArray[np.int64] | Sequence[int]

_FAR = 1 << 62  # the native core's bound of a token's position


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that is on from `first_token` (negative: before the call's first) to the end."""

    name: str
    first_token: int = -_FAR


@dataclass(frozen=True, slots=True)
class Salt:
    """Goes into the first block of the call and, by chaining, into all after it: give it only where a chain begins."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Multimodal:
    """An image, sound or video that stands for `tokens` placeholders from `first_token` on, which may lie before
    the call's.
    """

    identifier: bytes  # a digest of its content
    first_token: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Embeds:
    """Embeddings that the caller gave in place of tokens."""

    digest: bytes
    first_token: int
    tokens: int


Extra: TypeAlias = Lora | Salt | Multimodal | Embeds


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceIdentity:
    """Everything that decides what the bytes of a block mean and who may see them. Raises ValueError naming the field.

    `fingerprint` digests what the other fields do not say (shapes, axes, quantisation): 32 bytes, or empty.
    Clearing a namespace bumps `generation`: the digest changes and no old block is reachable any more.
    """

    engine: str
    model: str
    revision: str
    dtype: str
    block_tokens: int
    shards: tuple[Shard, ...]
    fingerprint: bytes = b""
    tenant: str = "default"
    generation: int = 0
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, layout: KVLayout, *, tenant: str = "default", generation: int = 0) -> "NamespaceIdentity":
        return cls(
            engine=layout.engine,
            model=layout.model,
            revision=layout.revision,
            dtype=layout.dtype,
            block_tokens=layout.block_tokens,
            shards=layout.shards,
            fingerprint=layout.fingerprint(),
            tenant=tenant,
            generation=generation,
        )

    def __post_init__(self) -> None:
        for field in ("engine", "model", "revision", "dtype", "tenant"):
            size = len(getattr(self, field).encode())
            if not 1 <= size <= NAME_BYTES_MAX:
                raise ValueError(f"{field} must be 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {size}")
        if not 1 <= self.block_tokens <= BLOCK_TOKENS_MAX:
            raise ValueError(f"block_tokens must be 1 to {BLOCK_TOKENS_MAX}, not {self.block_tokens}")
        if len(self.fingerprint) not in (0, 32):
            raise ValueError(f"fingerprint must be 32 bytes or empty, not {len(self.fingerprint)}")
        for field, value in (("generation", self.generation), ("format_version", self.format_version)):
            if not 0 <= value <= TOKEN_MAX:
                raise ValueError(f"{field} must be 0 to {TOKEN_MAX}, not {value}")
        if not 1 <= len(self.shards) <= SHARDS_MAX:
            raise ValueError(f"shards must be 1 to {SHARDS_MAX}, not {len(self.shards)}")
        for number, shard in enumerate(self.shards):
            _check_shard(number, shard)


def _check_shard(number: int, shard: Shard) -> None:
    field = f"shards[{number}]"
    if len(shard.group.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"{field}.group must be at most {NAME_BYTES_MAX} bytes of UTF-8")
    if not 0 <= shard.rank <= TOKEN_MAX:
        raise ValueError(f"{field}.rank must be 0 to {TOKEN_MAX}, not {shard.rank}")
    if not 1 <= len(shard.part_bytes) <= PARTS_MAX:
        raise ValueError(f"{field}.part_bytes must have 1 to {PARTS_MAX} parts, not {len(shard.part_bytes)}")
    for place, size in enumerate(shard.part_bytes):
        if not 1 <= size <= BLOCK_BYTES_MAX:
            raise ValueError(f"{field}.part_bytes[{place}] must be 1 to {BLOCK_BYTES_MAX}, not {size}")
    if not BLOCK_BYTES_MIN <= shard.bytes <= BLOCK_BYTES_MAX:
        raise ValueError(f"{field} is {shard.bytes} bytes: a shard is {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}")


def namespace_digest(identity: NamespaceIdentity) -> Digest:
    """SHA-256 of the canonical encoding, 32 bytes."""
    fields = Canonical(b"kvn1").text(identity.engine).text(identity.model).text(identity.revision).text(identity.dtype)
    fields.u32(identity.block_tokens).data(identity.fingerprint).u32(len(identity.shards))
    for shard in identity.shards:
        fields.text(shard.group).u32(shard.rank).u32s(shard.part_bytes)
    fields.u32(identity.format_version).text(identity.tenant).u64(identity.generation)
    return Digest(fields.digest())


def namespace_seed(secret: bytes, tenant: str, digest: bytes) -> Seed:
    """HMAC-SHA-256 of tenant and namespace under the cluster's secret: the parent of every chain's first key."""
    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"secret must be at least {SECRET_BYTES_MIN} bytes, not {len(secret)}")
    if len(digest) != KEY_BYTES:
        raise ValueError(f"digest must be {KEY_BYTES} bytes, not {len(digest)}")
    message = Canonical(b"kvs1").text(tenant).data(digest).encoded()
    return Seed(native.hmac_sha256(secret, message))


def chain_keys(seed: bytes, tokens: Tokens, block_tokens: int, extras: Sequence[Extra] = ()) -> Keys:
    """The keys of all full blocks, uint8 (n, 32): one native call for a whole prompt.

    `seed` is the namespace's, or the last key so far to go on with a chain; positions in `extras` then count from
    the first token given here. Raises ValueError naming the position of a token that is none.
    """
    rows = [_row(index, extra) for index, extra in enumerate(extras)]
    return native.keys_chain(seed, _token_array(tokens), block_tokens, rows)


def chain_keys_encoded(
    seed: bytes, tokens: Tokens, block_tokens: int, extras: Sequence[tuple[int, bytes]] = ()
) -> Keys:
    """The same for a caller that has encoded its extras itself: (block, bytes), ascending by block."""
    return native.keys_chain_encoded(seed, _token_array(tokens), block_tokens, extras)


def chain_keys_from_hashes(seed: bytes, hashes: Sequence[bytes]) -> Keys:
    """The same from an engine's own block hashes, 1 to 64 bytes each: they stand in for tokens and extras."""
    return native.keys_chain_hashes(seed, hashes)


def _token_array(tokens: Tokens) -> npt.NDArray[np.int32 | np.uint32 | np.int64]:
    if isinstance(tokens, np.ndarray):
        return np.ascontiguousarray(tokens)
    if len(tokens) == 0:
        return np.empty(0, np.uint32)
    with contextlib.suppress(OverflowError):  # beyond every integer of numpy
        array = np.asarray(tokens)
        if array.ndim == 1 and array.dtype in (np.int32, np.uint32, np.int64):
            return array
    for position, token in enumerate(tokens):
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise TypeError(f"tokens[{position}] is {token!r}, not an integer")
        if not 0 <= token <= TOKEN_MAX:
            raise ValueError(f"tokens[{position}] is {token}; a token id is 0 to {TOKEN_MAX}")
    return np.asarray(tokens, np.uint32)


def _row(index: int, extra: Extra) -> tuple[int, int, int, bytes]:
    """An extra as the native core takes it: kind, first token, end token, value."""
    match extra:
        case Lora(name, first):
            return native.EXTRA_LORA, first, _FAR, name.encode()
        case Salt(value):
            return native.EXTRA_SALT, 0, 1, value
        case Multimodal(identifier, first, tokens):
            return native.EXTRA_MULTIMODAL, first, first + tokens, identifier
        case Embeds(digest, first, tokens):
            return native.EXTRA_EMBEDS, first, first + tokens, digest
    raise TypeError(f"extras[{index}] is {type(extra).__name__}, not Lora, Salt, Multimodal or Embeds")
