"""The only module that touches pyverbs: devices, protection domains, queue pairs, and their native addresses.

Rules
- pyverbs is imported when a device is opened, never before. It must be of the same release as libibverbs (private
  symbols), so it is a system package; what is missing or mixed is said by `unavailable`.
- pyverbs never lets other threads run while it waits, so what may wait (connecting, registering, and the end of a queue
  pair, for which a kernel takes seconds after a link was lost) is native.
- Objects handed to native code are kept by whoever handed them over until native code has let them go.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from transfer.errors import TransferFault
from transfer.native import rdma_destroy, rdma_missing
from transfer.rdma.frames import RailOffer
from transfer.rdma.gids import GidEntry, choose

__all__ = [
    "Device",
    "Domain",
    "QueuePair",
    "RdmaUnavailable",
    "device_names",
    "forks_safely",
    "open_devices",
    "unavailable",
]

SYSFS = Path("/sys/class/infiniband")
_PORT = 1
_ACTIVE = 4  # IBV_PORT_ACTIVE
_ETHERNET = 2  # IBV_LINK_LAYER_ETHERNET
_ROCE_V2 = 2  # IBV_GID_TYPE_ROCE_V2
_GIDS_MAX = 1024
_READS_MAX = 16
# The first C field of a pyverbs object: after its head, method table, weak references and logger.
_FIELD_OFFSET = 40
# struct ibv_qp: context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num.
_QP = struct.Struct("<6QII")


class RdmaUnavailable(TransferFault):
    """There is no RDMA here, and why."""


def unavailable() -> str:
    """Why there is no RDMA here; empty where there is."""
    missing = rdma_missing()
    if missing:
        return missing
    if not device_names():
        return "no RDMA device: /sys/class/infiniband is empty"
    try:
        _pyverbs("device")
    except RdmaUnavailable as error:
        return str(error)
    return ""


def device_names(root: Path = SYSFS) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def _pyverbs(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"pyverbs.{name}")
    except ImportError as error:
        if "IBVERBS_PRIVATE" in str(error) or "undefined symbol" in str(error):
            raise RdmaUnavailable(f"pyverbs and libibverbs are of different releases: {error}") from error
        raise RdmaUnavailable(f"pyverbs cannot be imported ({error}); Debian: python3-pyverbs") from error
    except Exception as error:  # what a package that is broken, or not the one we know, does when it is imported
        raise RdmaUnavailable(f"pyverbs cannot be imported ({type(error).__name__}: {error})") from error


def _enums() -> ModuleType:
    try:
        return _pyverbs("libibverbs_enums")  # pyverbs 50 and later
    except RdmaUnavailable:
        return _pyverbs("enums")


@contextlib.contextmanager
def _told_as_os_error() -> Iterator[None]:
    try:
        yield
    except _pyverbs("pyverbs_error").PyverbsError as error:
        raise OSError(int(getattr(error, "error_code", 0)) or errno.EIO, str(error)) from error
    except (AttributeError, TypeError) as error:
        raise RdmaUnavailable(f"pyverbs is not of a release that is known here: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class QueuePair:
    """A fresh one is in no state to send; transfer.native.rdma_connect takes it there. `close` once."""

    held: object
    address: int
    number: int
    pd: int
    cq: int

    def close(self) -> None:
        """Other threads run meanwhile. Raises OSError."""
        field = ctypes.c_uint64.from_address(id(self.held) + _FIELD_OFFSET)
        if field.value != self.address:  # laid out in another way: pyverbs must do it, and holds the interpreter
            with _told_as_os_error():
                self.held.close()  # type: ignore[attr-defined]
            return
        field.value = 0  # as pyverbs leaves it: it has nothing to destroy any more, whoever closes what the pair is of
        try:
            rdma_destroy(self.address)
        except OSError:
            field.value = self.address
            raise


class Domain:
    """A protection domain: keys made in it open nothing to queue pairs of another. `address` is its native one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pd = _pyverbs("pd").PD(device.context)
        probe = self.queue_pair(1)
        self.address, self.cq = probe.pd, probe.cq
        probe.close()

    def queue_pair(self, depth: int) -> QueuePair:
        """Raises OSError, and RdmaUnavailable where pyverbs lays its objects out in a way that is not known."""
        qp, enums = _pyverbs("qp"), _enums()
        cap = qp.QPCap(max_send_wr=depth, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        cq = self._device.queue
        with _told_as_os_error():
            made = qp.QP(self._pd, qp.QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=cq, rcq=cq, cap=cap, sq_sig_all=0))
        address = _address_of(made)
        return QueuePair(made, address, int(made.qp_num), *_parts_of(address, int(made.qp_num)))

    def close(self) -> None:
        """Raises OSError where something of it is left."""
        with _told_as_os_error():
            self._pd.close()


class Device:
    """An open device, its first port, and the completion queue that all of our queue pairs on it share."""

    def __init__(self, name: str, cq_entries: int) -> None:
        device, cq = _pyverbs("device"), _pyverbs("cq")
        self.name = name
        try:
            with _told_as_os_error():
                self.context = device.Context(name=name)
                self._channel = cq.CompChannel(self.context)
                self.queue = cq.CQ(self.context, cq_entries, None, self._channel, 0)
                self.domain = Domain(self)
        except OSError as error:
            raise RdmaUnavailable(f"{name}: {error}") from error
        self.cq_address = self.domain.cq
        self.gid_index = 0

    def offer(self) -> RailOffer:
        """What a peer needs to know of the port as it is now; addresses move when links flap. Raises OSError."""
        with _told_as_os_error():
            port, limits = self.context.query_port(_PORT), self.context.query_device()
            table = self.context.query_gid_table(_GIDS_MAX)  # one call; sysfs takes one a place, mostly empty ones
        ethernet = int(port.link_layer) == _ETHERNET
        gids = [
            GidEntry(
                int(one.gid_index),
                bytes.fromhex(one.gid_str().replace(":", "")),
                int(one.gid_type) == _ROCE_V2,
                int(one.ndev_ifindex),
            )
            for one in table
            if int(one.port_num) == _PORT
        ]
        entry = choose(gids, ethernet=ethernet)
        reads = max(1, min(int(limits.max_qp_rd_atom), _READS_MAX))
        active = int(port.state) == _ACTIVE and entry is not None
        if entry is not None:
            self.gid_index = entry.index
        return RailOffer(
            entry.gid if entry is not None else bytes(16), int(port.lid), int(port.active_mtu), reads, ethernet, active
        )

    def close(self) -> None:
        """Raises OSError where something of it is left."""
        self.domain.close()
        with _told_as_os_error():
            self.queue.close()
            self._channel.close()
            self.context.close()


def forks_safely() -> bool:
    """Whether registered memory stays what it is when this process forks: the kernel copies pages for the child then,
    and not for us (5.12 and later), or libibverbs has been told to see to it.
    """
    try:
        return int(_pyverbs("fork").is_fork_initialized()) != 0
    except RdmaUnavailable:
        return False


def open_devices(names: tuple[str, ...], rails: int, cq_entries: int) -> list[Device]:
    """Those named, or all whose port is active. Raises RdmaUnavailable where there is none, or one named is missing."""
    why = unavailable()
    if why:
        raise RdmaUnavailable(why)
    there = device_names()
    if missing := [name for name in names if name not in there]:
        raise RdmaUnavailable(f"no RDMA device {missing[0]}; there are: {', '.join(there)}")
    opened: list[Device] = []
    refused = ""
    for name in names or there:
        if len(opened) == rails:
            break
        try:
            device = Device(name, cq_entries)
        except RdmaUnavailable as error:
            if names:
                raise
            refused = str(error)
            continue
        try:
            if names or device.offer().active:
                opened.append(device)
                continue
            refused = f"{name}: its port is not active, or has no usable GID"
        except (OSError, RdmaUnavailable) as error:
            refused = f"{name}: {error}"
        with contextlib.suppress(OSError):
            device.close()
    if not opened:
        raise RdmaUnavailable(f"no RDMA device can be used; {refused}")
    return opened


def _address_of(made: object) -> int:
    """The native address of a pyverbs queue pair."""
    told = None
    if _release() >= (61,):  # before, the attribute was a pointer dressed as an object
        told = getattr(made, "qp", None)
    if isinstance(told, int):
        return told
    return ctypes.c_uint64.from_address(id(made) + _FIELD_OFFSET).value


def _release() -> tuple[int, ...]:
    told = str(getattr(importlib.import_module("pyverbs"), "__version__", "0"))
    return tuple(int(part) for part in told.split(".") if part.isdigit()) or (0,)


def _parts_of(address: int, number: int) -> tuple[int, int]:
    """The protection domain's and the completion queue's addresses. Looks through /proc, where a wrong address is an
    error and not a crash.
    """
    try:
        fd = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            told = os.pread(fd, _QP.size, address)
        finally:
            os.close(fd)
    except (OSError, OverflowError) as error:
        raise RdmaUnavailable(f"pyverbs lays its queue pairs out in an unknown way: {error}") from error
    if len(told) != _QP.size:
        raise RdmaUnavailable("pyverbs lays its queue pairs out in an unknown way")
    _, _, pd, send_cq, _, _, _, found = _QP.unpack(told)
    if found != number or not pd or not send_cq:
        raise RdmaUnavailable("pyverbs lays its queue pairs out in an unknown way")
    return pd, send_cq
