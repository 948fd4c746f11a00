"""What a figure was measured on."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "describe"]


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    gpu: str  # "none" where there is none
    routines: str  # which native routines this CPU runs
    huge_pages: str  # what /dev/shm gives: never, advise, within_size, always


@functools.cache
def describe() -> Machine:
    """Of a run: asking takes long, and nothing of it changes meanwhile."""
    from kvstore import native

    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages * size / 2**30, 1),
        kernel=platform.release(),
        gpu=_gpu(),
        routines=native.kernels(),
        huge_pages=_huge_pages(),
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _huge_pages() -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    options = next((mount[3].split(",") for mount in reversed(mounts) if mount[1] == "/dev/shm"), [])
    return next((option.removeprefix("huge=") for option in options if option.startswith("huge=")), "never")


def _gpu() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "none"
    return ", ".join(found.split("\n")).strip(", ") or "none"
