"""How far a follow has come: what was told of blocks that somebody publishes, and what of them has arrived. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.wire import framed

if TYPE_CHECKING:
    from kvstore.client.held import Grip

__all__ = ["Followed", "goes_on"]


def goes_on(answer: framed.FollowResponse, arrived: list[int], sealed: int, count: int, part_count: int) -> bool:
    """Whether an answer goes on from those before it, which told of `arrived` parts of each block, and of `sealed`
    blocks; of `count` blocks of `part_count` parts.
    """
    blocks, before = len(answer.ready), len(arrived)
    if not before <= blocks <= count:
        return False
    known = arrived + [0] * (blocks - before)
    new = sum(answer.ready) - sum(known)
    return (
        len(answer.offsets) == len(answer.tickets) == len(answer.tiers) == blocks - before
        and all(old <= now <= part_count for old, now in zip(known, answer.ready, strict=True))
        and len(answer.checksums) == 8 * new
        and sealed <= answer.sealed <= blocks
        and all(parts == part_count for parts in answer.ready[: answer.sealed])
        and answer.HasField("section") == (new > 0)
        and all(at < 2**62 for at in answer.offsets)
    )


@dataclass(slots=True)
class Followed:
    """Of `count` blocks. arrived: how many parts of each block that was told of are here, compared. sealed: leading
    blocks; what arrived of others is nobody's word yet. line: the connection it goes by, once begun.
    """

    count: int
    part_count: int
    line: object = None
    number: int = 0
    arrived: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)
    tiers: bytes = b""
    sealed: int = 0
    corrupt: bool = False
    abandoned: str = ""  # why nothing more will come
    release: framed.ReleaseRequest = field(default_factory=framed.ReleaseRequest)
    grip: Grip | None = None

    @property
    def parts(self) -> int:
        """Leading parts that have arrived of every block."""
        return min(self.arrived) if len(self.arrived) == self.count else 0

    @property
    def blocks(self) -> int:
        """Leading blocks that are sealed, and here."""
        whole = next((i for i, parts in enumerate(self.arrived) if parts < self.part_count), len(self.arrived))
        return min(self.sealed, whole)

    def told(self, answer: framed.FollowResponse) -> bool:
        """Takes in what is new, but for parts, which have to arrive. Whether it goes on from what was told before."""
        good = goes_on(answer, self.arrived, self.sealed, self.count, self.part_count)
        if good:
            self.arrived = self.arrived + [0] * (len(answer.ready) - len(self.arrived))
            self.offsets += answer.offsets
            self.tickets += answer.tickets
            self.tiers += answer.tiers
            self.sealed = answer.sealed
            self.abandoned = (answer.why or "abandoned") if answer.abandoned else ""
        return good

    def end(self) -> None:
        """The node lets go. May be called twice."""
        if self.grip is not None:
            blocks, tiers = self.blocks, self.tiers
            read = self.release.reads[0] if self.release.reads else self.release.reads.add()
            read.blocks = min(blocks, len(tiers))
            self.grip.release()
