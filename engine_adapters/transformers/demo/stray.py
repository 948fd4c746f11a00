"""A stray write: bytes of a stored block altered behind the store's back, as a broken neighbour would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


def place_of(address: int) -> tuple[Path, int]:
    """The file that is mapped at this address of our own, and the offset in it. LookupError if it is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in fields[0].split("-"))
        if begin <= address < end and len(fields) == 6:
            return Path(fields[5]), int(fields[2], 16) + address - begin
    raise LookupError(f"no file is mapped at {address:#x}")


def overwrite(block: npt.NDArray[np.uint8], noise: bytes) -> None:
    """Writes `noise` over a block seen through a view: its mapping is read-only, the file below is its owner's."""
    path, offset = place_of(block.ctypes.data)
    with path.open("r+b", buffering=0) as segment:
        segment.seek(offset)
        segment.write(noise[: block.nbytes])
