"""The directory's limits and durations. Milliseconds, as they are configured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MS", "DirectorySettings"]

MS = 1_000_000  # nanoseconds


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    width: int = 16  # nodes that keep a namespace's claims; must agree in a cluster
    claims_max: int = 16 << 20  # that this node keeps for others
    holders_max: int = 4  # named for a key
    settle_ms: int = 2_000  # a node that came is asked only then; it is told at once
    grace_ms: int = 30_000  # a node that died is a home for so long: its keys' second homes answer meanwhile
    announce_ms: int = 20
    announce_rows_max: int = 4_096  # in one batch
    announce_retry_ms: int = 100  # after a batch that was not answered, doubled up to a second
    queue_max: int = 1 << 18  # keys waiting for one home; beyond it, it is told from scratch later
    scan_keys: int = 4_096  # slots looked at in one step
    digest_ms: int = 30_000
    hedge_ms: int = 50
    locate_ms_max: int = 500  # a lookup's end, whoever has not answered

    def __post_init__(self) -> None:
        if self.queue_max < 2 * self.scan_keys:
            raise ValueError("queue_max: at least twice scan_keys, or what one step finds would never fit")
