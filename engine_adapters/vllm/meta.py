"""What the scheduler's half of the connector tells the workers' halves each step, and what they tell it.

Pickled by vLLM between its own processes, so these are plain data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

if TYPE_CHECKING:
    from engine_adapters.vllm.events import Note
    from kvstore import KVLayout

__all__ = ["Load", "Save", "StepMeta", "WorkerMeta"]

Ids = Sequence[int]  # slices of the engine's own lists: to make arrays of them is the workers' business


@dataclass(slots=True)
class Load:
    """Blocks first..end of a prompt into the engine's memory.

    keys: (end - first, 32). ids: for each cache group the engine's block numbers, (blocks * ratio,), of its blocks
    at[group]..end: a window needs only the last ones. layerwise: within this step, before the layers that read them.
    """

    request: str
    first: int
    end: int
    keys: npt.NDArray[np.uint8]
    at: tuple[int, ...]
    ids: tuple[Ids, ...]
    layerwise: bool = False
    session: str = ""
    digest: bytes = b""  # of the namespace that the keys are of


@dataclass(slots=True)
class Save:
    """Blocks first..first + len(keys) of a prompt out of the engine's memory, which are pinned until `job` is told.

    held: for each group which of the blocks its memory still has, (blocks,), None: all; ids: their numbers, (blocks *
    ratio,). parent: the key before the first; b"": none.
    """

    job: int
    request: str
    first: int
    keys: npt.NDArray[np.uint8]
    parent: bytes
    held: tuple[npt.NDArray[np.bool_] | None, ...]
    ids: tuple[Ids, ...]
    session: str = ""
    digest: bytes = b""  # of the namespace that the keys are of
    note: Note | None = None  # what the engine says of these blocks; None: nothing that may be told


@dataclass
class StepMeta(KVConnectorMetadata):  # type: ignore[misc]
    """failures_seen: of each worker's layer-wise loads that failed, how many the scheduler has heard of. Until it has,
    what the engine computes may rest on blocks that never came, and must not be saved.
    """

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    failures_seen: dict[int, int] = field(default_factory=dict)


@dataclass
class WorkerMeta(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """layouts: of each rank, told until the scheduler must have them; None: this rank cannot take part (reasons).
    saved: blocks that are in the store, by job. loads: ended, well or not. short: of a request the first block that
    did not arrive. failures: layer-wise ones, so far, by rank.
    """

    layouts: dict[int, KVLayout | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    saved: dict[int, list[int]] = field(default_factory=dict)
    loaded: Counter[str] = field(default_factory=Counter)
    short: dict[str, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)

    def aggregate(self, other: WorkerMeta) -> WorkerMeta:
        self.layouts.update(other.layouts)
        self.reasons.update(other.reasons)
        for job, counts in other.saved.items():
            self.saved.setdefault(job, []).extend(counts)
        self.loaded.update(other.loaded)
        for request, block in other.short.items():
            self.short[request] = min(block, self.short.get(request, block))
        self.failures.update(other.failures)
        return self

    @property
    def empty(self) -> bool:
        return not (self.layouts or self.saved or self.loaded or self.short or self.failures)
