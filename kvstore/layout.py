"""What the bytes of a block are: which engine wrote them, in which shape, and how they are cut into shards and parts.

A block holds, for each cache group, the KV data of `block_tokens` tokens in the layers of that group. Each rank of
tensor parallelism has its own heads of it: a shard. A shard's bytes are its layers one after the other, each a
part.

Two layouts that differ in anything have different fingerprints, so what is unknown to a reader can never be taken for
something it knows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from kvstore.encoding import Canonical

__all__ = [
    "BLOCK_BYTES_MAX",
    "BLOCK_BYTES_MIN",
    "BLOCK_TOKENS_MAX",
    "LAYOUT_VERSION",
    "PARTS_MAX",
    "SHARDS_MAX",
    "CacheGroup",
    "GroupKind",
    "KVLayout",
    "Need",
    "NeedKind",
    "Shard",
]

LAYOUT_VERSION = 1  # of this description: another meaning of any field is another version
SHARDS_MAX = 64
PARTS_MAX = 256
BLOCK_TOKENS_MAX = 65_536
BLOCK_BYTES_MIN = 4 << 10  # of one shard
BLOCK_BYTES_MAX = 64 << 20
NAME_BYTES_MAX = 255
RANKS_MAX = 1024

AXES = ("layer", "block", "kv", "head", "token", "dim", "bytes")
DTYPE_BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "float8_e4m3": 8, "float8_e4m3fn": 8, "float8_e5m2": 8, "int8": 8, "uint8": 8, "float4_e2m1": 4, "int4": 4,
}  # fmt: skip


class GroupKind(IntEnum):
    """How the layers of a cache group look back."""

    FULL = 0  # at every token before
    WINDOW = 1  # at the last `window_tokens`
    LATENT = 2  # at every token, through one latent vector that all ranks share (MLA)
    STATE = 3  # not at all: a recurrent state at the block's end stands for the past


class NeedKind(IntEnum):
    """Which blocks a boundary must have; the numbers are those of the frames and of native/core/types.hpp."""

    ALL = 0
    LAST = 1
    STATE = 2


@dataclass(frozen=True, slots=True)
class Need:
    """What a rank needs of one shard to go on at a boundary."""

    shard: int
    kind: NeedKind = NeedKind.ALL
    blocks: int = 0  # for LAST: how many before the boundary


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of a block for one cache group; `part_bytes` in the order in which the parts lie."""

    group: str
    rank: int
    part_bytes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return sum(self.part_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers whose blocks live and die together.

    `layer_bytes`: bytes of one block in each layer, as one rank holds them; they may differ. `kv_heads` counts the
    whole model's; `head_dim` is the latent's width for LATENT. Both are 0 for STATE. `axes` is the order in which
    the engine's memory has a block's axes, outermost first: "layer" before "block" means that layers are apart;
    other axes before "block" cut a part into runs (`KVLayout.runs`); "bytes" stands for whatever the engine keeps
    to itself.
    """

    name: str
    kind: GroupKind
    layer_bytes: tuple[int, ...]
    kv_heads: int = 0
    head_dim: int = 0
    window_tokens: int = 0
    axes: tuple[str, ...] = ("layer", "block", "bytes")

    @property
    def parts(self) -> tuple[int, ...]:
        """One a layer where a shard has its layers one after the other, else the whole shard."""
        inside = [axis for axis in self.axes if axis != "block"]
        return self.layer_bytes if inside[0] == "layer" else (sum(self.layer_bytes),)

    def holders(self, ranks: int) -> int:
        """How many ranks hold bytes of their own; the others hold copies of theirs."""
        if self.kind is GroupKind.LATENT:
            return 1
        return ranks if self.kind is GroupKind.STATE else min(ranks, self.kv_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """The whole description. Raises ValueError naming the field; see `uniform` for the usual case.

    `content_format` names what the bytes of a part mean and in which version ("backend/1"); `revision` names the
    weights.
    """

    engine: str
    model: str
    revision: str
    dtype: str
    content_format: str
    block_tokens: int
    groups: tuple[CacheGroup, ...]
    tensor_parallel: int = 1
    version: int = LAYOUT_VERSION

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(problem)

    @classmethod
    def uniform(
        cls,
        *,
        engine: str,
        model: str,
        revision: str,
        dtype: str,
        block_tokens: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        content_format: str = "",
        tensor_parallel: int = 1,
        axes: tuple[str, ...] = ("layer", "block", "kv", "head", "token", "dim"),
    ) -> "KVLayout":
        """A model whose layers are all full attention, alike: K and V of each head and token, one part a layer."""
        for field, value in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)):
            if value < 1:
                raise ValueError(f"{field} must be at least 1, not {value}")
        if not 1 <= tensor_parallel <= RANKS_MAX:
            raise ValueError(f"tensor_parallel must be 1 to {RANKS_MAX}, not {tensor_parallel}")
        if dtype not in DTYPE_BITS:
            raise ValueError(
                f"dtype {dtype!r} has no known size: one of {', '.join(DTYPE_BITS)}, or give groups yourself"
            )
        heads = max(1, kv_heads // tensor_parallel)
        layer_bytes = 2 * heads * head_dim * block_tokens * DTYPE_BITS[dtype] // 8
        group = CacheGroup(
            name="full",
            kind=GroupKind.FULL,
            layer_bytes=(layer_bytes,) * layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            axes=axes,
        )
        return cls(
            engine=engine,
            model=model,
            revision=revision,
            dtype=dtype,
            content_format=content_format or f"{engine}/1",
            block_tokens=block_tokens,
            groups=(group,),
            tensor_parallel=tensor_parallel,
        )

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Every shard once, by rank and then by group. Its place is its number."""
        return tuple(
            Shard(group.name, rank, group.parts)
            for rank in range(self.tensor_parallel)
            for group in self.groups
            if rank < group.holders(self.tensor_parallel)
        )

    def shard_of(self, rank: int, group: str) -> int:
        """The number of the shard that `rank` reads for `group`, which another rank may write when heads are copied."""
        if not 0 <= rank < self.tensor_parallel:
            raise ValueError(f"rank must be 0 to {self.tensor_parallel - 1}, not {rank}")
        found = self.groups[self._group_index(group)]
        holder = rank * found.holders(self.tensor_parallel) // self.tensor_parallel
        places = [(shard.group, shard.rank) for shard in self.shards]
        return places.index((group, holder))

    def needs(self, rank: int) -> tuple[Need, ...]:
        """What `rank` must find to go on at a boundary: one need a group."""
        return tuple(self._need(group, self.shard_of(rank, group.name)) for group in self.groups)

    def runs(self, group: str) -> tuple[int, ...]:
        """The contiguous pieces in which the engine's memory has a shard of this group: lengths, in the shard's
        byte order.
        """
        found = self.groups[self._group_index(group)]
        pieces = self._pieces(found)
        if found.axes[0] == "layer":
            return tuple(layer // pieces for layer in found.layer_bytes for _ in range(pieces))
        return (sum(found.layer_bytes) // pieces,) * pieces

    def fingerprint(self) -> bytes:
        """SHA-256 of everything above, 32 bytes."""
        fields = Canonical(b"kvl1").u32(self.version).text(self.engine).text(self.model).text(self.revision)
        fields.text(self.dtype).text(self.content_format).u32(self.block_tokens).u32(self.tensor_parallel)
        fields.u32(len(self.groups))
        for group in self.groups:
            fields.text(group.name).u32(group.kind).u32(group.kv_heads).u32(group.head_dim)
            fields.u32(group.window_tokens).u32s(group.layer_bytes).u32(len(group.axes))
            for axis in group.axes:
                fields.text(axis)
        return fields.digest()

    def _group_index(self, name: str) -> int:
        names = [group.name for group in self.groups]
        if name not in names:
            raise ValueError(f"group {name!r} is none of {', '.join(names)}")
        return names.index(name)

    def _need(self, group: CacheGroup, shard: int) -> Need:
        if group.kind is GroupKind.STATE:
            return Need(shard, NeedKind.STATE)
        if group.kind is GroupKind.WINDOW:
            # The token at the boundary sees itself and the window_tokens - 1 before it.
            return Need(shard, NeedKind.LAST, max(1, -(-(group.window_tokens - 1) // self.block_tokens)))
        return Need(shard)

    def _pieces(self, group: CacheGroup) -> int:
        """Into how many runs the axes before "block" cut each layer (or the shard, where layers lie inside a block)."""
        sizes = {
            "layer": 1,
            "kv": 2,
            "head": max(1, group.kv_heads // self.tensor_parallel),
            "token": self.block_tokens,
        }
        return math.prod(sizes[axis] for axis in group.axes[: group.axes.index("block")])


def _problems(layout: KVLayout) -> Iterator[str]:
    """Everything that is wrong with a layout, field by field; later checks may rely on earlier ones having passed."""
    for field in ("engine", "model", "revision", "dtype", "content_format"):
        yield from _name_problems(field, getattr(layout, field))
    if layout.version != LAYOUT_VERSION:
        yield f"version must be {LAYOUT_VERSION}, not {layout.version}"
    if not 1 <= layout.block_tokens <= BLOCK_TOKENS_MAX:
        yield f"block_tokens must be 1 to {BLOCK_TOKENS_MAX}, not {layout.block_tokens}"
    if not 1 <= layout.tensor_parallel <= RANKS_MAX:
        yield f"tensor_parallel must be 1 to {RANKS_MAX}, not {layout.tensor_parallel}"
    if not layout.groups:
        yield "groups must have at least one"
    names = [group.name for group in layout.groups]
    if len(set(names)) != len(names):
        yield f"groups must have different names, not {', '.join(names)}"
    for index, group in enumerate(layout.groups):
        yield from _group_problems(f"groups[{index}]", group, layout)
    yield from _shard_problems(layout)


def _name_problems(field: str, value: str) -> Iterator[str]:
    if not 1 <= len(value.encode()) <= NAME_BYTES_MAX:
        yield f"{field} must be 1 to {NAME_BYTES_MAX} bytes of UTF-8, not {len(value.encode())}"


def _axes_problems(field: str, group: CacheGroup) -> Iterator[str]:
    axes = group.axes
    if unknown := [axis for axis in axes if axis not in AXES]:
        yield f"{field} has {unknown[0]!r}: known are {', '.join(AXES)}"
    if len(set(axes)) != len(axes):
        yield f"{field} must name each axis once, not {', '.join(axes)}"
    if "layer" not in axes or "block" not in axes or len(axes) < 3:
        yield f"{field} must have 'layer', 'block' and what lies inside a block, at least 'bytes'"
        return
    outside = axes[: axes.index("block")]
    if {"dim", "bytes"} & set(outside):
        yield f"{field} must not have 'dim' or 'bytes' before 'block': a run would be a single value"
    if "layer" in outside and outside[0] != "layer":
        yield f"{field} must have 'layer' first where it comes before 'block': a part is one layer"
    if group.kind in (GroupKind.LATENT, GroupKind.STATE) and {"kv", "head"} & set(axes):
        yield f"{field} must not have 'kv' or 'head' for {group.kind.name}"


def _group_problems(field: str, group: CacheGroup, layout: KVLayout) -> Iterator[str]:
    ranks = layout.tensor_parallel
    yield from _name_problems(f"{field}.name", group.name)
    yield from _axes_problems(f"{field}.axes", group)
    if not group.layer_bytes or min(group.layer_bytes) < 1:
        yield f"{field}.layer_bytes must have at least one layer, each of at least 1 byte"
    elif max(group.layer_bytes) > BLOCK_BYTES_MAX:
        yield f"{field}.layer_bytes must be at most {BLOCK_BYTES_MAX} each, not {max(group.layer_bytes)}"
    window = group.kind is GroupKind.WINDOW
    if window != (group.window_tokens > 0) or group.window_tokens >= 1 << 32:
        yield f"{field}.window_tokens must be 1 or more for WINDOW and 0 else, not {group.window_tokens}"
    if group.kind is GroupKind.STATE:
        if group.kv_heads or group.head_dim:
            yield f"{field}.kv_heads and .head_dim must be 0 for STATE"
        return
    for name, value in (("kv_heads", group.kv_heads), ("head_dim", group.head_dim)):
        if not 1 <= value < 1 << 32:
            yield f"{field}.{name} must be at least 1, not {value}"
    if group.kind is not GroupKind.LATENT and group.kv_heads % ranks and ranks % group.kv_heads:
        yield f"{field}.kv_heads is {group.kv_heads}: neither it nor tensor_parallel = {ranks} divides the other"


def _shard_problems(layout: KVLayout) -> Iterator[str]:
    count = sum(group.holders(layout.tensor_parallel) for group in layout.groups)
    if count > SHARDS_MAX:
        yield f"tensor_parallel and groups make {count} shards: shards_max is {SHARDS_MAX}"
        return
    for number, shard in enumerate(layout.shards):
        field = f"shard {number} (group {shard.group!r}, rank {shard.rank})"
        if len(shard.part_bytes) > PARTS_MAX:
            yield f"{field} has {len(shard.part_bytes)} parts: parts_max is {PARTS_MAX}"
        if not BLOCK_BYTES_MIN <= shard.bytes <= BLOCK_BYTES_MAX:
            limits = f"{BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"
            yield f"{field} is {shard.bytes} bytes, and a shard has {limits}: change block_tokens"
    for index, group in enumerate(layout.groups):
        pieces = layout._pieces(group)
        if any(layer % pieces for layer in group.layer_bytes):
            yield f"groups[{index}].axes cut a layer into {pieces} runs, which does not divide its bytes"
