"""What every transport does alike with its regions, whatever moves their bytes: granting ranges, and letting all go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from transfer.errors import RegionPoisoned
from transfer.grants import Grant, GrantBook, Rights, normal_ranges
from transfer.regions import Region, Regions, RegionState

__all__ = ["deregister_all", "issue"]


def issue(
    regions: Regions,
    book: GrantBook,
    region: Region,
    ranges: Sequence[tuple[int, int]],
    *,
    rights: Rights,
    lifetime_s: float,
    now_ns: int,
) -> Grant:
    """Transport.grant, as far as it is bookkeeping. Raises ValueError for a region that is not open here, or that may
    not be written, and whatever the book and the ranges refuse.
    """
    if regions.get(region.id) is not region or region.state is not RegionState.OPEN:
        raise ValueError(f"{region.name} is not registered here")
    if rights & Rights.WRITE and not region.writable:
        raise ValueError(f"{region.name} is registered read-only")
    allowed = normal_ranges(ranges, region.bytes)
    return book.issue(region.id, region.bytes, allowed, rights=rights, lifetime_s=lifetime_s, now_ns=now_ns)


async def deregister_all(regions: Regions, deregister: Callable[[Region], Awaitable[None]]) -> list[str]:
    """The names of those that could not be made quiet; all others are gone then."""
    poisoned: list[str] = []
    for region in regions.all():
        try:
            await deregister(region)
        except RegionPoisoned:
            poisoned.append(region.name)
    return poisoned
