"""Medians with intervals, of rounds that were taken in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from bench.harness import Row

__all__ = ["EngineRow", "Interval", "median", "of", "paired_ratio", "with_intervals"]

SAMPLES = 10_000
SURE = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Interval:
    """Of a median, at 95 %, by bootstrap."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EngineRow(Row):
    """intervals: of ours and of the others by their labels, in the row's unit. rounds: that they are of."""

    intervals: dict[str, Interval]
    rounds: int


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def of(values: Sequence[float]) -> Interval:
    taken = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(1).integers(len(taken), size=(SAMPLES, len(taken)))
    low, high = np.percentile(np.median(taken[drawn], axis=1), SURE)
    return Interval(float(low), float(high))


def paired_ratio(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round: what disturbs the machine disturbs both."""
    return [mine / other for mine, other in zip(ours, others, strict=True)]


def with_intervals(row: Row, intervals: Mapping[str, Interval], rounds: int) -> EngineRow:
    plain = {field.name: getattr(row, field.name) for field in fields(Row)}
    return EngineRow(**plain, intervals=dict(intervals), rounds=rounds)
