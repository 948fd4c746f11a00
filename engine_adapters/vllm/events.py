"""KV events of the store, in the engine's own stream: which blocks this engine has put there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm.distributed.kv_events import BlockStored

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from engine_adapters.vllm.chains import Chain

__all__ = ["MEDIUM", "Note", "events_of", "note_of"]

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
