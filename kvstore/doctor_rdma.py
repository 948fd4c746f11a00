"""What `kvstore doctor` says about RDMA: devices and their ports, who may open them, how much memory may be registered,
and whether pyverbs is there and of the same release as libibverbs.

Nothing here imports pyverbs: an import that fails may fail by a signal, so it is tried in a child process.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from kvstore.allowed import human
from kvstore.doctor_rails import rails
from kvstore.finding import Finding

IMPORT_MAX_S = 30.0
MEMLOCK_MIN_BYTES = 1 << 30  # below it a node's memory tier can hardly be registered
CAP_IPC_LOCK = 14
INSTALL = "install rdma-core and pyverbs of one release (Debian: python3-pyverbs; in a checkout: make setup-rdma)"


@dataclass(frozen=True, slots=True)
class Verbs:
    """Where the two halves of the verbs lie; None where there is none."""

    pyverbs: Path | None
    library: Path | None


def rdma(sysfs: Path, dev: Path, proc: Path, verbs: Verbs | None = None) -> list[Finding]:
    """Every finding about RDMA. `verbs`: found on this machine unless given."""
    findings = [devices(sysfs)]
    if _named(sysfs):
        findings += [nodes(sysfs, dev), registered_memory(proc, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])]
        findings += rails(sysfs)
    return [*findings, pyverbs(verbs or verbs_here(proc))]


def devices(sysfs: Path) -> Finding:
    """The devices as the kernel lists them, with the state of their ports."""
    subject = "RDMA"
    if not (names := _named(sysfs)):
        return Finding(
            subject,
            "off",
            "no RDMA device",
            "peers are reached without RDMA; with a NIC: modprobe its driver, apt-get install rdma-core",
        )
    ports = [
        (f"{name} port {port.name}", (port / "state").read_text().split(":")[-1].strip())
        for name in names
        for port in sorted((sysfs / "class/infiniband" / name / "ports").glob("*"))
    ]
    found = "; ".join(f"{port} {state}" for port, state in ports) or f"{', '.join(names)}: no port"
    idle = [port for port, state in ports if state != "ACTIVE"]
    up = "ip link set up on the port's network device, or check the cable; InfiniBand: a subnet manager"
    if len(idle) == len(ports):
        return Finding(subject, "off", found, up)
    return Finding(subject, "slow", found, f"{', '.join(idle)}: {up}") if idle else Finding(subject, "ok", found)


def nodes(sysfs: Path, dev: Path) -> Finding:
    """Each device is opened through a node of its own, which containers do not have unless they are given it."""
    subject = "RDMA access"
    folder = dev / "infiniband"
    of = {
        (path / "ibdev").read_text().strip(): folder / path.name
        for path in sorted((sysfs / "class/infiniband_verbs").glob("uverbs*"))
    }
    wrong: list[str] = []
    advice: list[str] = []
    for name in _named(sysfs):
        if name not in of:
            wrong.append(f"{name} has no verbs node")
            advice.append("modprobe ib_uverbs")
        elif not of[name].exists():
            wrong.append(f"{of[name]} of {name} is not there")
            advice.append(f"containers: --device {folder}, or an RDMA device plugin")
        elif not os.access(of[name], os.R_OK | os.W_OK):
            wrong.append(f"{of[name]} of {name} may not be opened")
            advice.append(f"chmod 0666 {of[name]} (rdma-core's udev rules do), or the group that owns it")
    if not wrong:
        return Finding(subject, "ok", f"{len(of)} nodes under {folder} may be opened")
    state = "off" if len(wrong) == len(_named(sysfs)) else "slow"
    return Finding(subject, state, "; ".join(wrong), "; ".join(dict.fromkeys(advice)))


def registered_memory(proc: Path, limit: int) -> Finding:
    """A region is locked memory, and counts against RLIMIT_MEMLOCK unless CAP_IPC_LOCK is effective (being root in a
    container is not enough).
    """
    subject = "RDMA memory"
    if limit == resource.RLIM_INFINITY:
        return Finding(subject, "ok", "no limit on locked memory")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self/status").read_text(), re.MULTILINE)
    if effective and int(effective[1], 16) >> CAP_IPC_LOCK & 1:
        return Finding(subject, "ok", f"locked memory is limited to {human(limit)}, and CAP_IPC_LOCK lifts that")
    return Finding(
        subject,
        "slow" if limit >= MEMLOCK_MIN_BYTES else "off",
        f"at most {human(limit)} of regions: registering more fails with ENOMEM",
        "LimitMEMLOCK=infinity in the unit, ulimit -l unlimited; containers: --ulimit memlock=-1 or --cap-add IPC_LOCK",
    )


def pyverbs(verbs: Verbs) -> Finding:
    """pyverbs uses symbols that libibverbs keeps for its own release, so the two must be of one."""
    subject = "pyverbs"
    if verbs.pyverbs is None or verbs.library is None:
        absent = [name for name, path in (("pyverbs", verbs.pyverbs), ("libibverbs", verbs.library)) if path is None]
        return Finding(subject, "off", f"no {' and no '.join(absent)}", f"only needed for RDMA: {INSTALL}")
    release = _release(verbs.library)
    wanted, offered = _private(_extension(verbs.pyverbs)), _private(verbs.library)
    if wanted and offered and not wanted <= offered:
        return Finding(
            subject,
            "off",
            f"{verbs.pyverbs} is built for {_told(wanted)}; {verbs.library}, release {release}, has {_told(offered)}",
            INSTALL,
        )
    if why := _refusal(verbs.pyverbs):
        return Finding(subject, "off", f"{verbs.pyverbs} does not import: {why}", INSTALL)
    return Finding(subject, "ok", f"{verbs.pyverbs} fits libibverbs of release {release}")


def verbs_here(proc: Path) -> Verbs:
    """pyverbs as this interpreter would find it, and libibverbs as the loader would."""
    folders = (Path(entry) / "pyverbs" for entry in sys.path)
    found = next((folder for folder in folders if _extension(folder) is not None), None)
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        return Verbs(found, None)
    mapped = re.search(r"(/\S*/libibverbs\.so\S*)$", (proc / "self/maps").read_text(), re.MULTILINE)
    return Verbs(found, Path(mapped[1]) if mapped else None)


def _named(sysfs: Path) -> list[str]:
    return sorted(path.name for path in (sysfs / "class/infiniband").glob("*"))


def _extension(package: Path) -> Path | None:
    return next((path for suffix in EXTENSION_SUFFIXES if (path := package / f"device{suffix}").is_file()), None)


def _private(binary: Path | None) -> set[int]:
    """The release symbols that an ELF file names: those it needs, or those it has."""
    content = binary.read_bytes() if binary is not None else b""
    return {int(number) for number in re.findall(rb"\0IBVERBS_PRIVATE_(\d+)\0", content)}


def _told(private: set[int]) -> str:
    return ", ".join(f"IBVERBS_PRIVATE_{number}" for number in sorted(private))


def _release(library: Path) -> str:
    """libibverbs.so.1.14.44.0 is of rdma-core 44.0."""
    found = re.search(r"\.so\.\d+\.\d+\.(\d+\.\d+)$", str(library.resolve()))
    return found[1] if found else "unknown"


def _refusal(package: Path) -> str:
    """Why pyverbs cannot be imported from that folder; empty where it can."""
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import pyverbs.device"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_MAX_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not within {IMPORT_MAX_S:.0f} s"
    if tried.returncode < 0:
        return f"ended by signal {-tried.returncode}"
    said = tried.stderr.strip().splitlines()
    return said[-1] if tried.returncode and said else ""
