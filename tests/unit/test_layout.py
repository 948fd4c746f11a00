"""Layouts: shards, parts, needs and runs derived from groups; what is refused, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvstore.layout import CacheGroup, GroupKind, KVLayout, Need, NeedKind, Shard

FULL = CacheGroup(name="full", kind=GroupKind.FULL, layer_bytes=(8192,) * 3, kv_heads=8, head_dim=64)
WINDOW = CacheGroup(
    name="window", kind=GroupKind.WINDOW, layer_bytes=(4096, 6144), kv_heads=8, head_dim=64, window_tokens=100
)
LATENT = CacheGroup(name="mla", kind=GroupKind.LATENT, layer_bytes=(9216,) * 4, kv_heads=1, head_dim=576)
STATE = CacheGroup(name="state", kind=GroupKind.STATE, layer_bytes=(5000,))


def layout(*groups: CacheGroup, **changes: Any) -> KVLayout:
    fields: dict[str, Any] = {"engine": "vllm", "model": "m", "revision": "r", "dtype": "bfloat16"}
    fields |= {"content_format": "flash/1", "block_tokens": 16, "groups": groups or (FULL,)}
    return KVLayout(**(fields | changes))


def uniform(**changes: Any) -> KVLayout:
    fields: dict[str, Any] = {"engine": "e", "model": "m", "revision": "r", "dtype": "bfloat16", "block_tokens": 16}
    fields |= {"layers": 32, "kv_heads": 8, "head_dim": 128}
    return KVLayout.uniform(**(fields | changes))


def test_uniform_is_the_usual_case() -> None:
    made = uniform()
    assert made.shards == (Shard("full", 0, (65536,) * 32),)
    assert made.shards[0].bytes == 2 << 20
    assert made.needs(0) == (Need(0, NeedKind.ALL),)
    assert made.content_format == "e/1"
    assert uniform(tensor_parallel=4).shards[3] == Shard("full", 3, (16384,) * 32)
    assert uniform(dtype="float8_e4m3").shards[0].bytes == 1 << 20


def test_heads_fewer_than_ranks_are_shared() -> None:
    made = uniform(kv_heads=2, tensor_parallel=8)
    assert [shard.rank for shard in made.shards] == [0, 1]
    assert [made.shard_of(rank, "full") for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert made.shards[0].part_bytes == (2 * 128 * 16 * 2,) * 32


def test_hybrid_needs_by_group() -> None:
    made = layout(FULL, WINDOW, LATENT, STATE, tensor_parallel=2)
    assert [(shard.group, shard.rank) for shard in made.shards] == [
        ("full", 0), ("window", 0), ("mla", 0), ("state", 0), ("full", 1), ("window", 1), ("state", 1),
    ]  # fmt: skip
    # 99 tokens before the one that is computed: 7 blocks of 16.
    assert made.needs(1) == (Need(4), Need(5, NeedKind.LAST, 7), Need(2), Need(6, NeedKind.STATE))
    assert made.needs(0)[2] == Need(2)


@pytest.mark.parametrize(("window", "blocks"), [(1, 1), (2, 1), (16, 1), (17, 1), (18, 2), (33, 2), (34, 3)])
def test_a_window_counts_the_token_itself(window: int, blocks: int) -> None:
    group = dataclasses.replace(WINDOW, window_tokens=window)
    assert layout(group).needs(0) == (Need(0, NeedKind.LAST, blocks),)


@pytest.mark.parametrize(
    ("axes", "runs", "parts"),
    [
        (("layer", "block", "bytes"), (8192,) * 3, (8192,) * 3),
        (("block", "layer", "bytes"), (24576,), (8192,) * 3),
        (("layer", "kv", "block", "token", "head", "dim"), (4096,) * 6, (8192,) * 3),
        (("layer", "kv", "head", "block", "token", "dim"), (512,) * 48, (8192,) * 3),
        (("block", "head", "layer", "token", "dim"), (24576,), (24576,)),
        (("kv", "block", "layer", "token", "head", "dim"), (12288,) * 2, (24576,)),
    ],
)
def test_axes_decide_runs_and_parts(axes: tuple[str, ...], runs: tuple[int, ...], parts: tuple[int, ...]) -> None:
    made = layout(dataclasses.replace(FULL, axes=axes))
    assert made.runs("full") == runs
    assert made.shards[0].part_bytes == parts
    assert sum(runs) == sum(parts)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "x"},
        {"model": "x"},
        {"revision": "x"},
        {"dtype": "x"},
        {"content_format": "flash/2"},
        {"block_tokens": 32},
        {"tensor_parallel": 2},
        {"groups": (dataclasses.replace(FULL, name="x"),)},
        {"groups": (dataclasses.replace(FULL, layer_bytes=(8192, 8192, 4096)),)},
        {"groups": (dataclasses.replace(FULL, kv_heads=4),)},
        {"groups": (dataclasses.replace(FULL, head_dim=32),)},
        {"groups": (dataclasses.replace(FULL, axes=("block", "layer", "bytes")),)},
        {"groups": (dataclasses.replace(FULL, kind=GroupKind.LATENT),)},
        {"groups": (dataclasses.replace(FULL, kind=GroupKind.WINDOW, window_tokens=5),)},
        {"groups": (FULL, STATE)},
    ],
)
def test_every_field_changes_the_fingerprint(change: dict[str, Any]) -> None:
    base = layout()
    assert len(base.fingerprint()) == 32
    assert layout(**change).fingerprint() != base.fingerprint()
    assert layout(**change).fingerprint() == layout(**change).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": ""}, "engine must be 1 to 255 bytes"),
        ({"content_format": "x" * 256}, "content_format must be 1 to 255 bytes of UTF-8, not 256"),
        ({"version": 2}, "version must be 1"),
        ({"block_tokens": 0}, "block_tokens must be 1 to 65536"),
        ({"tensor_parallel": 0}, "tensor_parallel must be 1 to 1024"),
        ({"tensor_parallel": 3}, r"groups\[0\].kv_heads is 8: neither it nor tensor_parallel = 3"),
        ({"groups": ()}, "groups must have at least one"),
        ({"groups": (FULL, FULL)}, "groups must have different names"),
        ({"groups": (dataclasses.replace(FULL, name=""),)}, r"groups\[0\].name"),
        ({"groups": (dataclasses.replace(FULL, layer_bytes=()),)}, r"groups\[0\].layer_bytes must have at least one"),
        ({"groups": (dataclasses.replace(FULL, layer_bytes=(0,)),)}, r"groups\[0\].layer_bytes"),
        ({"groups": (dataclasses.replace(FULL, layer_bytes=(100,)),)}, "shard 0 .* is 100 bytes"),
        ({"groups": (dataclasses.replace(FULL, layer_bytes=(1 << 20,) * 65),)}, "shard 0 .* change block_tokens"),
        ({"groups": (dataclasses.replace(FULL, layer_bytes=(64,) * 257),)}, "257 parts: parts_max is 256"),
        ({"groups": (dataclasses.replace(FULL, kv_heads=0),)}, r"groups\[0\].kv_heads must be at least 1"),
        ({"groups": (dataclasses.replace(FULL, head_dim=0),)}, r"groups\[0\].head_dim must be at least 1"),
        ({"groups": (dataclasses.replace(FULL, window_tokens=4),)}, r"groups\[0\].window_tokens"),
        ({"groups": (dataclasses.replace(WINDOW, window_tokens=0),)}, r"groups\[0\].window_tokens"),
        ({"groups": (dataclasses.replace(STATE, kv_heads=1),)}, "must be 0 for STATE"),
        ({"groups": (dataclasses.replace(STATE, axes=("layer", "kv", "block", "bytes")),)}, "'kv' or 'head' for STATE"),
        ({"groups": (dataclasses.replace(FULL, axes=("layer", "block")),)}, r"groups\[0\].axes must have"),
        ({"groups": (dataclasses.replace(FULL, axes=("layer", "block", "x")),)}, r"groups\[0\].axes has 'x'"),
        ({"groups": (dataclasses.replace(FULL, axes=("layer", "layer", "block")),)}, "each axis once"),
        ({"groups": (dataclasses.replace(FULL, axes=("kv", "layer", "block", "dim")),)}, "'layer' first"),
        ({"groups": (dataclasses.replace(FULL, axes=("dim", "block", "layer")),)}, "'dim' or 'bytes' before"),
        (
            {"groups": (dataclasses.replace(FULL, layer_bytes=(8191,), axes=("layer", "kv", "block", "dim")),)},
            "does not divide",
        ),
        ({"tensor_parallel": 64, "groups": (dataclasses.replace(FULL, kv_heads=64), STATE)}, "shards_max is 64"),
    ],
)
def test_a_wrong_layout_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(**change)


@pytest.mark.parametrize("change", [{"layers": 0}, {"kv_heads": 0}, {"head_dim": -1}, {"dtype": "odd"}])
def test_uniform_names_its_own_fields(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(change))}"):
        uniform(**change)


def test_unknown_ranks_and_groups_are_named() -> None:
    with pytest.raises(ValueError, match="rank must be 0 to 0, not 1"):
        layout().needs(1)
    with pytest.raises(ValueError, match="group 'x' is none of full"):
        layout().runs("x")
