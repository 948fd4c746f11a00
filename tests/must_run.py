"""Whether something may be skipped: tests/must_run.txt names what CI runs whatever the machine lacks."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["must_run"]

_LIST = Path(__file__).with_name("must_run.txt")


def must_run() -> tuple[str, ...]:
    """The names, where `CI` is set; elsewhere nothing must."""
    if not os.environ.get("CI"):
        return ()
    lines = (line.split("#")[0].strip() for line in _LIST.read_text().splitlines())
    return tuple(line for line in lines if line)
