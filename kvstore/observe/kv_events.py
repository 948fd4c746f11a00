"""KV events as vLLM publishes them, from what is known of blocks: docs/routers.md has the format. Pure.

    batch    [ts, [event, ...], data-parallel rank], in MessagePack
    event    a map with "type" (vLLM 0.31 and 0.32), or an array that begins with it (older releases, and their readers)

Blocks of which each builds on the one before are told in one event, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from kvstore.block_meta import BlockMeta

__all__ = ["CLEARED", "FORMS", "MEDIA", "Statement", "events_of"]

FORMS: Final = ("maps", "arrays")
MEDIA: Final = {1: "CPU", 2: "STORAGE"}  # of tiers, by their numbers, in the words of vLLM's own events
CLEARED: Final = "AllBlocksCleared"
RUN_MAX: Final = 256  # blocks of one event

Event = dict[str, object] | list[object]


class Statement(NamedTuple):
    """A medium has the block whole, or has not."""

    stored: bool
    medium: str
    meta: BlockMeta


@dataclass(frozen=True, slots=True)
class _Run:
    """Statements of one kind, told as one."""

    of: list[Statement]

    def takes(self, told: Statement) -> bool:
        first, last = self.of[0], self.of[-1]
        if len(self.of) >= RUN_MAX or (told.stored, told.medium, told.meta.group) != (
            first.stored,
            first.medium,
            first.meta.group,
        ):
            return False
        if not told.stored:
            return True
        one, other = told.meta, last.meta
        return (
            one.parent == other.hash
            and (one.block_tokens, one.lora_id, one.lora_name) == (other.block_tokens, other.lora_id, other.lora_name)
            and bool(one.tokens) == bool(other.tokens)
        )

    def fields(self) -> dict[str, object]:
        """In the order in which arrays have them."""
        first = self.of[0]
        hashes = [told.meta.hash for told in self.of]
        if not first.stored:
            return {"type": "BlockRemoved", "block_hashes": hashes, "medium": first.medium}
        return {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": first.meta.parent,
            "token_ids": [token for told in self.of for token in told.meta.tokens],
            "block_size": first.meta.block_tokens,
            "lora_id": first.meta.lora_id,
            "medium": first.medium,
            "lora_name": first.meta.lora_name or None,
        }


def events_of(told: Iterable[Statement], form: str, *, cleared: bool = False) -> list[Event]:
    """cleared: before anything else, that nothing is held."""
    events: list[Event] = []
    if cleared:
        events.append({"type": CLEARED} if form == "maps" else [CLEARED])
    for run in _runs(told):
        fields = run.fields()
        # Arrays end where older releases' do; a group's number was added to maps only.
        events.append({**fields, "group_idx": run.of[0].meta.group} if form == "maps" else list(fields.values()))
    return events


def _runs(told: Iterable[Statement]) -> Iterator[_Run]:
    run: _Run | None = None
    for each in told:
        if run is not None and run.takes(each):
            run.of.append(each)
            continue
        if run is not None:
            yield run
        run = _Run([each])
    if run is not None:
        yield run
