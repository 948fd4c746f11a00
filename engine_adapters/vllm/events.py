"""KV events of the store: what this engine says of the blocks that it puts there, in its own stream and beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm.distributed.kv_events import BlockStored

from kvstore.block_meta import metas_of

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from engine_adapters.vllm.chains import Chain

__all__ = ["MEDIUM", "Note", "events_of", "metas_of_note", "note_of", "plain"]

MEDIUM: Final = "STORAGE"


@dataclass(frozen=True, slots=True)
class Note:
    """A run of blocks: the engine's hashes, the one before them, their tokens."""

    hashes: tuple[bytes, ...]
    parent: bytes | None
    tokens: tuple[int, ...]
    block_tokens: int
    lora_id: int | None
    lora_name: str | None

    def cut(self, blocks: int) -> Note:
        tokens = self.tokens[: blocks * self.block_tokens]
        return Note(self.hashes[:blocks], self.parent, tokens, self.block_tokens, self.lora_id, self.lora_name)


def note_of(request: Request, chain: Chain, first: int, end: int, block_tokens: int) -> Note:
    lora = request.lora_request
    return Note(
        tuple(chain.hash_of(block) for block in range(first, end)),
        chain.hash_of(first - 1) if first else None,
        tuple(request.all_token_ids[first * block_tokens : end * block_tokens]),
        block_tokens,
        lora.lora_int_id if lora is not None else None,
        lora.lora_name if lora is not None else None,
    )


def plain(request: Request) -> bool:
    """Whether its blocks are what their tokens and a LoRA adapter say, and nothing else: no salt, no items, no
    embeddings. Of others nothing is put beside the blocks, since whoever matches tokens would take them for another's.
    """
    return not (request.cache_salt or request.mm_features or getattr(request, "prompt_embeds", None) is not None)


def metas_of_note(note: Note, group: int) -> list[bytes]:
    """What is put beside each block (docs/format/meta.md). Not for the engine's thread."""
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    return metas_of(
        [maybe_convert_block_hash(value) for value in note.hashes],
        parent=None if note.parent is None else maybe_convert_block_hash(note.parent),
        tokens=note.tokens,
        block_tokens=note.block_tokens,
        group=group,
        lora_id=note.lora_id,
        lora_name=note.lora_name or "",
    )


def events_of(notes: Iterable[Note]) -> list[BlockStored]:
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    return [
        BlockStored(
            block_hashes=[maybe_convert_block_hash(value) for value in note.hashes],
            parent_block_hash=None if note.parent is None else maybe_convert_block_hash(note.parent),
            token_ids=list(note.tokens),
            block_size=note.block_tokens,
            lora_id=note.lora_id,
            medium=MEDIUM,
            lora_name=note.lora_name,
        )
        for note in notes
    ]
