"""Blocks on their way from reserved to sealed, and who is told of it: what native/core/watches.hpp and
node_core_progress.cpp say, and what of it the directory is told (node_core_claims.cpp), over dicts. Room never lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["PUBLISHING", "Block", "Place", "PublishingModel"]

MEMORY, PUBLISHING = 1, 4
Place = tuple[int, int, bytes]  # a namespace's handle, shard, key


@dataclass(slots=True)
class Block:
    """lapses: when its reservation does; sealed ones never."""

    owner: int
    ticket: int
    lapses: int
    parts: int
    sums: list[int] = field(default_factory=list)
    sealed: bool = False


@dataclass(slots=True)
class PublishingModel:
    """begun: keys that the directory is told of besides events, in order. told: watches that have to be woken."""

    blocks: dict[Place, Block] = field(default_factory=dict)
    watches: dict[int, set[Place]] = field(default_factory=dict)
    told: dict[int, bool] = field(default_factory=dict)
    begun: list[tuple[int, bytes]] = field(default_factory=list)

    # ---- publishing

    def reserve(self, owner: int, place: Place, ticket: int, lapses: int, parts: int) -> None:
        assert place not in self.blocks
        self.blocks[place] = Block(owner, ticket, lapses, parts)

    def publish(self, place: Place, checksum: int) -> None:
        block = self.blocks[place]
        block.sums.append(checksum)
        if len(block.sums) == 1:
            self.begun.append((place[0], place[2]))
        self._tell(place, abandoned=False)

    def seal(self, place: Place, checksums: list[int]) -> None:
        block = self.blocks[place]
        block.sums += checksums
        block.sealed = True
        self._tell(place, abandoned=False)

    def give_up(self, place: Place) -> None:
        """By its owner's word, his end, or by time."""
        block = self.blocks.pop(place)
        assert not block.sealed
        if block.sums:
            self.begun.append((place[0], place[2]))
        self._tell(place, abandoned=True)

    def lapse(self, now: int) -> None:
        for place in [place for place, one in self.blocks.items() if not one.sealed and one.lapses <= now]:
            self.give_up(place)

    def owner_gone(self, owner: int) -> None:
        for place in [place for place, one in self.blocks.items() if not one.sealed and one.owner == owner]:
            self.give_up(place)

    def drop_namespace(self, ns: int) -> None:
        for place in [place for place in self.blocks if place[0] == ns]:
            if self.blocks[place].sealed:
                del self.blocks[place]
            else:
                self.give_up(place)
        for watch, places in self.watches.items():
            if any(place[0] == ns for place in places):
                self.told[watch] = True

    # ---- who is told

    def watch(self, number: int, places: set[Place]) -> None:
        self.watches[number] = places

    def unwatch(self, number: int) -> None:
        self.watches.pop(number, None)
        self.told.pop(number, None)

    def take(self) -> list[tuple[int, bool]]:
        told, self.told = self.told, {}
        return list(told.items())

    def _tell(self, place: Place, *, abandoned: bool) -> None:
        for watch, places in self.watches.items():
            if place in places:
                self.told[watch] = self.told.get(watch, False) or abandoned

    # ---- what there is

    def state(self, ns: int, key: bytes) -> tuple[int, int]:
        """Shards and tier, as the directory is told them."""
        shards = {one[1]: block for one, block in self.blocks.items() if (one[0], one[2]) == (ns, key)}
        sealed = sum(1 << shard for shard, block in shards.items() if block.sealed)
        coming = sum(1 << shard for shard, block in shards.items() if block.sums)
        return (sealed, MEMORY) if sealed else (coming, PUBLISHING) if coming else (0, 0)

    def followable(self, ns: int, shard: int, keys: list[bytes]) -> list[Block]:
        """The run that a follower may hold: sealed, or with parts."""
        run: list[Block] = []
        for key in keys:
            block = self.blocks.get((ns, shard, key))
            if block is None or not (block.sealed or block.sums):
                break
            run.append(block)
        return run
