"""What a check of `kvstore doctor` says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    state: str  # ok | slow | off | bad
    found: str
    advice: str = ""
