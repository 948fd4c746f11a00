"""What an engine says of a block beside its bytes, so that others can speak of the block in the engine's own words.

Put with the block (`metas=` of ns.put), it rides in the slot header on every tier; events carry it. The format is
docs/format/meta.md, version 1. Pure; `read` takes anybody's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["HASH_BYTES_MAX", "META_BYTES_MAX", "BlockMeta", "metas_of", "read"]

META_BYTES_MAX: Final = 1_024  # of any meta that the store takes
HASH_BYTES_MAX: Final = 64
LORA_NAME_BYTES_MAX: Final = 255

VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBBBHBB")  # version, flags, hash bytes, group, block tokens, LoRA's name, zero
_FORM: Final = 0b11  # of hashes
_BYTES, _UNSIGNED, _SIGNED = range(3)
_PARENT: Final = 1 << 2
_LORA: Final = 1 << 3
_WIDTH_AT: Final = 4  # two bits: bytes of a token less one; 0: tokens are not told

Hash = int | bytes


@dataclass(frozen=True, slots=True)
class BlockMeta:
    """hash, parent: as the engine's own events have them, numbers of 64 bits or bytes. parent: of the block before;
    None: a prompt's first block, or not known. tokens: as many as block_tokens, or none where they are not told. group:
    the engine's number of the cache group.
    """

    hash: Hash
    parent: Hash | None
    block_tokens: int
    tokens: tuple[int, ...] = ()
    group: int = 0
    lora_id: int | None = None
    lora_name: str = ""


def metas_of(
    hashes: Sequence[Hash],
    *,
    parent: Hash | None,
    tokens: Sequence[int] | npt.NDArray[np.integer],
    block_tokens: int,
    group: int = 0,
    lora_id: int | None = None,
    lora_name: str = "",
) -> list[bytes]:
    """Metas of blocks that follow one another. tokens: of all of them, or none. What does not fit is told as nothing:
    such a block has an empty meta.
    """
    width, packed = _packed(tokens, len(hashes) * block_tokens)
    step = width * block_tokens
    name = lora_name.encode()
    fits = len(name) <= LORA_NAME_BYTES_MAX and 0 < block_tokens < 1 << 16 and 0 <= group < 256
    more = (b"" if lora_id is None else lora_id.to_bytes(8, "little", signed=True)) + name
    flags = (0 if lora_id is None else _LORA) | ((width - 1) << _WIDTH_AT if width else 0)
    metas, before = [], parent
    for number, each in enumerate(hashes):
        form, said = _said(each, before)
        if fits and said:
            length = len(said) if before is None else len(said) // 2
            told = flags | form | (0 if before is None else _PARENT)
            head = _HEAD.pack(VERSION, told, length, group, block_tokens, len(name), 0)
            meta = b"".join((head, said, more, packed[number * step : (number + 1) * step]))
            metas.append(meta if len(meta) <= META_BYTES_MAX else b"")
        else:
            metas.append(b"")
        before = each
    return metas


def _said(own: Hash, before: Hash | None) -> tuple[int, bytes]:
    """The form of hashes, and both of them; nothing where they cannot be told together."""
    if isinstance(own, bytes):
        lengths = {len(own), len(own) if before is None else len(before) if isinstance(before, bytes) else 0}
        if lengths != {len(own)} or not 0 < len(own) <= HASH_BYTES_MAX:
            return _BYTES, b""
        return _BYTES, own + before if isinstance(before, bytes) else own
    if isinstance(before, bytes):
        return _UNSIGNED, b""
    both = (own,) if before is None else (own, before)
    signed = min(both) < 0
    if min(both) < -(1 << 63) or max(both) >= 1 << (63 if signed else 64):
        return _UNSIGNED, b""
    return _SIGNED if signed else _UNSIGNED, b"".join(each.to_bytes(8, "little", signed=signed) for each in both)


def _packed(tokens: Sequence[int] | npt.NDArray[np.integer], count: int) -> tuple[int, bytes]:
    """Bytes of a token (0: they are not told), and all tokens."""
    if not len(tokens):
        return 0, b""
    values = np.asarray(tokens, dtype=np.int64)
    if len(values) != count:
        raise ValueError(f"tokens: {len(values)}, must be {count} or none")
    highest = int(values.max())
    if int(values.min()) < 0 or highest >= 1 << 32:
        return 0, b""
    width = 2 if highest < 1 << 16 else 3 if highest < 1 << 24 else 4
    return width, values.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


def read(meta: bytes) -> BlockMeta | None:
    """None for what is none of ours: another version, other lengths than it says."""
    if len(meta) < _HEAD.size or len(meta) > META_BYTES_MAX:
        return None
    version, flags, length, group, block_tokens, name_bytes, zero = _HEAD.unpack_from(meta)
    form, width = flags & _FORM, (flags >> _WIDTH_AT) & 3
    width += 1 if width else 0
    if version != VERSION or zero or form > _SIGNED or flags >> 6 or not block_tokens:
        return None
    if not 0 < length <= HASH_BYTES_MAX or (form != _BYTES and length != 8):
        return None
    hashes = 2 if flags & _PARENT else 1
    at = _HEAD.size + length * hashes
    lora = at
    at += 8 if flags & _LORA else 0
    if len(meta) != at + name_bytes + width * block_tokens:
        return None
    try:
        name = meta[at : at + name_bytes].decode()
    except UnicodeDecodeError:
        return None
    raw = [meta[_HEAD.size + i * length : _HEAD.size + (i + 1) * length] for i in range(hashes)]
    found = raw if form == _BYTES else [int.from_bytes(each, "little", signed=form == _SIGNED) for each in raw]
    return BlockMeta(
        found[0],
        found[1] if hashes == 2 else None,
        block_tokens,
        _unpacked(meta[at + name_bytes :], width),
        group,
        int.from_bytes(meta[lora : lora + 8], "little", signed=True) if flags & _LORA else None,
        name,
    )


def _unpacked(raw: bytes, width: int) -> tuple[int, ...]:
    if not width:
        return ()
    wide = np.zeros((len(raw) // width, 4), np.uint8)
    wide[:, :width] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return tuple(wide.view("<u4")[:, 0].tolist())
