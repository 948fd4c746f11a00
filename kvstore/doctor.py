"""`kvstore doctor`: what this machine has for the store, what is missing, and what to do about it.

Each check looks and changes nothing (O_DIRECT and the ring are tried on a scratch file that is removed). A finding is
`ok`, `slow` (works, and could be faster, larger or safer), `off` (a part is off; the rest works) or `bad` (the node
would not start).
"""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kvstore import config as settings
from kvstore import native
from kvstore.allowed import human
from kvstore.config import Config, ObjectConfig
from kvstore.doctor_gpu import gpu
from kvstore.doctor_node import data_directory, doors, existing, file_tier, kv_events, shared_memory
from kvstore.doctor_rdma import rdma
from kvstore.errors import Misconfigured
from kvstore.finding import Finding
from kvstore.tiers.object import ObjectTier
from kvstore.transfers import device_settings


def examine(
    config: Config,
    sysfs: Path = Path("/sys"),
    proc: Path = Path("/proc"),
    dev: Path = Path("/dev"),
) -> list[Finding]:
    """Every check, in the order in which a block travels. A check that fails itself is a finding, not an exception."""
    data_dir = settings.data_dir(config)
    files = config.file.directory or data_dir / "files"
    checks: list[tuple[str, Callable[[], Finding | list[Finding]]]] = [
        ("doors", partial(doors, config)),
        ("data directory", partial(data_directory, data_dir)),
        ("shared memory", partial(shared_memory, config)),
        ("huge pages", partial(huge_pages, sysfs, proc, config.memory.directory)),
        ("locked memory", locked_memory),
        ("io_uring", ring),
        ("file tier", partial(file_tier, config.file, files)),
        ("direct I/O", partial(direct_io, files)),
        ("object store", partial(object_store, config.object, data_dir)),
        ("open files", open_files),
        ("GPU", lambda: gpu(sysfs, ways=device_settings(config.transfer).ways)),
        ("RDMA", partial(rdma, sysfs, dev, proc)),
        ("KV events", partial(kv_events, config)),
    ]
    return [finding for subject, check in checks for finding in _guarded(subject, check)]


def _guarded(subject: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    try:
        found = check()
    except (OSError, Misconfigured) as error:
        return [Finding(subject, "off", f"could not look: {error}")]
    return found if isinstance(found, list) else [found]


def huge_pages(sysfs: Path, proc: Path, shm: Path) -> Finding:
    """A tmpfs gives huge pages as its mount says (huge=). shmem_enabled is about memory without a mount, but its "deny"
    and "force" overrule both.
    """
    subject = "huge pages"
    mount, kind, options = _mount_of(shm, proc)
    if kind == "hugetlbfs":
        return Finding(subject, "ok", f"{mount} is a hugetlbfs")
    overruled = _chosen(sysfs / "kernel/mm/transparent_hugepage/shmem_enabled")
    chosen = next((option.removeprefix("huge=") for option in options if option.startswith("huge=")), "never")
    if overruled in {"deny", "force"}:
        chosen = overruled
    found = f"shared memory under {mount} has huge={chosen}"
    if chosen in {"always", "within_size", "advise", "force"}:
        return Finding(subject, "ok", found)
    advice = f"mount -o remount,huge=advise {mount}, then start the node anew (large copies: up to a quarter faster)"
    if chosen == "deny":
        advice = "the kernel's shmem_enabled is deny: echo never > it, and " + advice
    return Finding(subject, "slow", found, advice)


def _mount_of(path: Path, proc: Path) -> tuple[str, str, list[str]]:
    """Where the file system of `path` is mounted, its type, its options."""
    best = ("/", "", list[str]())
    for line in (proc / "mounts").read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind, options.split(","))
    return best


def locked_memory() -> Finding:
    """Registered memory (io_uring buffers, RDMA regions, pinned staging) counts against RLIMIT_MEMLOCK."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "ok", "unlimited")
    if os.geteuid() == 0:
        return Finding("locked memory", "ok", f"{human(soft)}, and root is not bound by it")
    return Finding(
        "locked memory",
        "slow",
        human(soft),
        "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited: buffers are not registered beyond it",
    )


def ring() -> Finding:
    """Whether the file tier may use io_uring."""
    reason = native.uring_refused()
    if reason is None:
        return Finding("io_uring", "ok", "usable")
    return Finding(
        "io_uring",
        "slow",
        f"not usable: {reason}; the file tier uses threads",
        "sysctl kernel.io_uring_disabled=0; containers: a seccomp profile that allows io_uring_*",
    )


def direct_io(directory: Path) -> Finding:
    """Direct I/O keeps blocks out of the page cache, where they would be held twice."""
    there = existing(directory)
    if not os.access(there, os.W_OK):
        return Finding("direct I/O", "off", f"{there} cannot be written", "mend its permissions, or set file.directory")
    with tempfile.NamedTemporaryFile(dir=there) as scratch, mmap.mmap(-1, 4096) as page:
        try:
            file = os.open(scratch.name, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            return Finding(
                "direct I/O",
                "slow",
                f"refused in {there}: {error.strerror}",
                "ext4 and xfs have it; tmpfs and some network file systems do not",
            )
        try:
            os.pwritev(file, [page], 0)
        except OSError as error:
            return Finding(
                "direct I/O",
                "slow",
                f"a direct write in {there} failed: {error.strerror}",
                "use a file system with direct I/O for the file tier",
            )
        finally:
            os.close(file)
    return Finding("direct I/O", "ok", f"works in {there}")


def object_store(config: ObjectConfig, data_dir: Path) -> Finding:
    """Whether the object tier's store answers, and takes a small object."""
    subject = "object store"
    if config.url == "none":
        return Finding(subject, "off", "object.url = none", "set object.url: blocks then outlive this machine")
    if config.url is None or config.url.startswith("file://"):
        path = Path(config.url.removeprefix("file://")) if config.url is not None else data_dir / "objects"
        there = existing(path)
        if not os.access(there, os.W_OK):
            return Finding(subject, "off", f"{there} cannot be written", "mend its permissions, or set object.url")
        stats = os.statvfs(there)
        return Finding(subject, "ok", f"{path}, {human(stats.f_bavail * stats.f_frsize)} free on its disk")
    why = asyncio.run(_refusal(config, config.url))
    if why is None:
        return Finding(subject, "ok", f"{config.url} answers and can be written")
    return Finding(
        subject, "off", f"{config.url}: {why}", "check object.url and object.options (endpoint, keys, region)"
    )


async def _refusal(config: ObjectConfig, url: str) -> str | None:
    try:
        tier = ObjectTier.open(
            url,
            timeout_s=min(config.timeout_ms / 1000, 5.0),
            retries=0,
            concurrency=1,
            options=dict(one.split("=", 1) for one in config.options),
        )
    except Misconfigured as error:
        return str(error)
    return await tier.refusal()


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= 4096:
        return Finding("open files", "ok", str(soft))
    return Finding(
        "open files",
        "slow",
        f"{soft} (hard limit {hard})",
        "LimitNOFILE=65536 in the unit: each client connection takes one",
    )


def _chosen(setting: Path) -> str:
    """The bracketed word of a sysfs choice."""
    text = setting.read_text() if setting.exists() else ""
    return text.partition("[")[2].partition("]")[0]
