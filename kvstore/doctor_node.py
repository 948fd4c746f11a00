"""`kvstore doctor`'s half about settings: whether a node would start with them on this machine, and how large.

Each check asks the rules that the node itself starts by, so that both refuse the same, in the same words. What only
trying can tell, such as a port that somebody has, or a second node, is left to the start.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from kvstore import config as settings
from kvstore.allowed import human
from kvstore.config import Config, FileConfig
from kvstore.errors import Misconfigured
from kvstore.finding import Finding
from kvstore.node.auth import Guard
from kvstore.node.file_store import choose_bytes
from kvstore.node.home import Home
from kvstore.node.kv_publisher import ADVICE, missing
from kvstore.node.segments import planned
from kvstore.node.tls import Certificates
from kvstore.security import check_addresses, check_events
from kvstore.tiers.data_dir import DataDir, Geometry, room_bytes
from kvstore.transfers import rdma_config, tcp_config

SHM_MIN_BYTES = 256 << 20


def existing(path: Path) -> Path:
    """It, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if _is_there(each))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # of a folder above it
        return False


def data_directory(path: Path) -> Finding:
    """Where the node keeps what it must not forget."""
    subject, there = "data directory", existing(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        advice = "choose another with --data-dir, or mend its permissions"
        return Finding(subject, "bad", f"{path} cannot be written: {error.strerror}", advice)
    return Finding(subject, "ok", str(path) if there == path else f"{path}, to be made")


def shared_memory(config: Config) -> Finding:
    """The memory tier lies in shared memory, so its size bounds the tier."""
    subject, shm = "shared memory", config.memory.directory
    if not shm.is_dir():
        advice = "mount a tmpfs there; containers: --shm-size or an emptyDir of medium Memory"
        return Finding(subject, "bad", f"{shm} is not there", advice)
    stats = os.statvfs(shm)
    total, free = stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize
    found = f"{human(free)} free of {human(total)} in {shm}"
    advice = "ask for less (--memory), or enlarge it: --shm-size=8g, or mount -o remount,size=50% " + str(shm)
    try:
        size = planned(config.memory, config.node.name or Home(settings.data_dir(config)).default_name())
    except Misconfigured as error:
        return Finding(subject, "bad", str(error), advice)
    found += f"; the memory tier takes {human(size.bytes)}"
    if total < SHM_MIN_BYTES:
        advice = "docker gives 64 MiB by default: --shm-size=8g, or mount -o remount,size=50% " + str(shm)
        return Finding(subject, "slow", found, advice)
    if free < total // 4:
        return Finding(subject, "slow", found, f"look for leftovers of dead processes: ls -l {shm}")
    return Finding(subject, "ok", found)


def file_tier(config: FileConfig, directory: Path) -> Finding:
    """Whether the disk has room for it."""
    subject = "file tier"
    if not config.enabled:
        return Finding(subject, "off", "file.enabled = false", "file.enabled = true: blocks then outlive memory")
    room, folder = room_bytes(directory), DataDir(directory)
    try:
        geometry = Geometry.of(choose_bytes(config, room), config.slab_bytes, folder.former())
        folder.check_room(geometry)
    except Misconfigured as error:
        return Finding(subject, "bad", str(error), "ask for less in file.bytes, or set file.enabled = false")
    return Finding(subject, "ok", f"takes {human(geometry.size)} of {human(room)} in {directory}")


def kv_events(config: Config) -> Finding:
    """Whether routers are told over ZeroMQ what the node holds."""
    subject, addresses = "KV events", config.events.addresses
    if not addresses:
        advice = "events.zmq = tcp://127.0.0.1:5557: prefix-aware routers then hear of it (docs/routers.md)"
        return Finding(subject, "off", "events.zmq = none", advice)
    lacking = missing()
    if lacking:
        return Finding(subject, "bad", f"{lacking} is not installed", ADVICE)
    try:
        exposed = check_events(config.security, addresses)
    except Misconfigured as error:
        return Finding(subject, "bad", str(error), "docs/routers.md says what carries it safely")
    if exposed:
        return Finding(subject, "slow", "; ".join(exposed), "docs/routers.md")
    return Finding(subject, "ok", ", ".join(addresses))


def doors(config: Config) -> Finding:
    """Whether what the settings open may be opened, and whether the files that guard it can be read."""
    subject, security = "doors", config.security
    try:
        exposed = check_addresses(security, settings.tcp_addresses(config))
        Guard(security)
        Certificates(security, framed=config.node.address != "none")
        transfer = settings.transfer_of(config)
        tcp_config(transfer, listens=True)
        rdma_config(transfer, listens=True)
        socket = settings.socket_path(config)
    except Misconfigured as error:
        return Finding(subject, "bad", str(error), "docs/security.md says who may do what, and how")
    if exposed:
        return Finding(subject, "slow", "; ".join(exposed), "docs/security.md: certificates, tokens")
    return Finding(subject, "ok", ", ".join((f"unix:{socket}", *settings.tcp_addresses(config))))
