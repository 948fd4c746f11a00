"""Where slots lie: slabs of a medium, each cut into cells of one size while it has any.

A slot's id is its place: slab * ids_per_slab + cell. A slab is given to a cell size when first needed and is free again
when its last cell is. Which free cell is taken is nobody's business: `take` may be told.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a medium: its bytes, those of one slab, of the header before each payload, and what cells are multiples of."""

    bytes: int
    slab_bytes: int
    header_bytes: int = 0
    align: int = 4096

    @property
    def slabs(self) -> int:
        return self.bytes // self.slab_bytes

    @property
    def ids_per_slab(self) -> int:
        return self.slab_bytes // (self.align + self.header_bytes)

    def cell_bytes(self, payload: int) -> int:
        return -(-(payload + self.header_bytes) // self.align) * self.align

    def fits(self, payload: int) -> bool:
        return payload > 0 and self.cell_bytes(payload) <= self.slab_bytes

    def cells(self, cell: int) -> int:
        return self.slab_bytes // cell

    def slot_at(self, payload_offset: int, cell: int) -> int | None:
        """The slot whose cell of this size has its payload there; None: no such cell begins where that would."""
        slab, within = divmod(payload_offset - self.header_bytes, self.slab_bytes)
        place, rest = divmod(within, cell)
        if payload_offset < self.header_bytes or slab >= self.slabs or rest or place >= self.cells(cell):
            return None
        return slab * self.ids_per_slab + place


@dataclass(slots=True)
class Slab:
    cell_bytes: int = 0  # 0: free
    used: dict[int, None] = field(default_factory=dict)  # cells


class Slabs:
    """Which cells are in use."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.slabs = [Slab() for _ in range(geometry.slabs)]

    def slab_of(self, slot: int) -> int:
        return slot // self.geometry.ids_per_slab

    def has_room(self, slab: Slab) -> bool:
        return len(slab.used) < self.geometry.cells(slab.cell_bytes)

    def candidates(self, cell: int) -> list[int]:
        """Slabs that a cell of this size may be taken from: those of the size that have room, else the free ones."""
        own = [i for i, slab in enumerate(self.slabs) if slab.cell_bytes == cell and self.has_room(slab)]
        return own or [i for i, slab in enumerate(self.slabs) if slab.cell_bytes == 0]

    def take(self, cell: int, wanted: int | None = None) -> int | None:
        """A free cell's id, or None. `wanted` must be one that may be taken."""
        slabs = self.candidates(cell)
        if not slabs:
            assert wanted is None, f"slot {wanted} given, but no cell of {cell} bytes is free"
            return None
        per_slab = self.geometry.ids_per_slab
        if wanted is None:
            used = self.slabs[slabs[0]].used
            place = next(i for i in range(self.geometry.cells(cell)) if i not in used)
            wanted = slabs[0] * per_slab + place
        slab, place = divmod(wanted, per_slab)
        assert slab in slabs, f"slot {wanted} lies in slab {slab}; its size may take from {slabs}"
        assert place not in self.slabs[slab].used, f"slot {wanted} is in use"
        assert place < self.geometry.cells(cell), f"slot {wanted} lies beyond its slab"
        self.slabs[slab].cell_bytes = cell
        self.slabs[slab].used[place] = None
        return wanted

    def claim(self, slot: int, cell: int) -> bool:
        """Takes the cell of a slot known from before; False: its slab is of another size by now."""
        slab, place = divmod(slot, self.geometry.ids_per_slab)
        row = self.slabs[slab]
        if row.cell_bytes not in (0, cell) or place in row.used or place >= self.geometry.cells(cell):
            return False
        row.cell_bytes = cell
        row.used[place] = None
        return True

    def give(self, slot: int) -> None:
        slab, place = divmod(slot, self.geometry.ids_per_slab)
        del self.slabs[slab].used[place]
        if not self.slabs[slab].used:
            self.slabs[slab].cell_bytes = 0

    def slots_of(self, slab: int) -> list[int]:
        return sorted(slab * self.geometry.ids_per_slab + place for place in self.slabs[slab].used)

    def offset(self, slot: int) -> int:
        """Of the payload, in the medium."""
        slab, place = divmod(slot, self.geometry.ids_per_slab)
        start = slab * self.geometry.slab_bytes + place * self.slabs[slab].cell_bytes
        return start + self.geometry.header_bytes

    def bytes_free(self) -> int:
        total = 0
        for slab in self.slabs:
            if slab.cell_bytes == 0:
                total += self.geometry.slab_bytes
            else:
                total += (self.geometry.cells(slab.cell_bytes) - len(slab.used)) * slab.cell_bytes
        return total
