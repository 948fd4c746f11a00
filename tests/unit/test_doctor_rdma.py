"""What the doctor says about RDMA on made-up machines."""

from __future__ import annotations

import os
import resource
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kvstore import doctor_rdma
from kvstore.doctor_rails import rails
from kvstore.doctor_rdma import Verbs
from tests.unit.transfer.fake_sysfs import ROOT_A, ROOT_B, Sysfs


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for folder in ("sys/class/infiniband", "sys/class/infiniband_verbs", "dev/infiniband", "proc/self"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tnode\nCapEff:\t0000000000000000\n")
    return tmp_path


def device(machine: Path, name: str, number: int, *states: str) -> Path:
    """A device with its ports; returns its node."""
    for port, state in enumerate(states, 1):
        folder = machine / f"sys/class/infiniband/{name}/ports/{port}"
        folder.mkdir(parents=True)
        (folder / "state").write_text(state + "\n")
    verbs = machine / f"sys/class/infiniband_verbs/uverbs{number}"
    verbs.mkdir()
    (verbs / "ibdev").write_text(name + "\n")
    node = machine / f"dev/infiniband/uverbs{number}"
    node.touch()
    return node


IMPORTS = "import sys; sys.modules['pyverbs.device'] = sys"  # as the extension module would


def installed(machine: Path, wants: int = 34, has: int = 34, code: str = IMPORTS) -> Verbs:
    """A pyverbs folder and a library that name these release symbols. `code` is what importing pyverbs runs."""
    package = machine / "site/pyverbs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / f"device{EXTENSION_SUFFIXES[-1]}").write_bytes(b"\x7fELF\0IBVERBS_PRIVATE_%d\0" % wants)
    library = machine / "libibverbs.so.1.14.44.0"
    library.write_bytes(b"\x7fELF\0IBVERBS_1.1\0IBVERBS_PRIVATE_%d\0" % has)
    link = machine / "libibverbs.so.1"
    link.symlink_to(library)
    return Verbs(package, link)


def test_ports(machine: Path) -> None:
    assert doctor_rdma.devices(machine / "nothing").state == "off"
    assert doctor_rdma.devices(machine / "sys").found == "no RDMA device"
    device(machine, "mlx5_0", 0, "1: DOWN", "2: INIT")
    finding = doctor_rdma.devices(machine / "sys")
    assert (finding.state, finding.found) == ("off", "mlx5_0 port 1 DOWN; mlx5_0 port 2 INIT")
    device(machine, "mlx5_1", 1, "4: ACTIVE")
    finding = doctor_rdma.devices(machine / "sys")
    assert finding.state == "slow"
    assert finding.advice.startswith("mlx5_0 port 1, mlx5_0 port 2: ip link set up")
    (machine / "sys/class/infiniband/mlx5_0/ports/1/state").write_text("4: ACTIVE\n")
    (machine / "sys/class/infiniband/mlx5_0/ports/2/state").write_text("4: ACTIVE\n")
    finding = doctor_rdma.devices(machine / "sys")
    assert (finding.state, finding.advice) == ("ok", "")


def test_nodes_that_are_not_there(machine: Path) -> None:
    device(machine, "mlx5_0", 3, "4: ACTIVE")
    node = device(machine, "mlx5_1", 4, "4: ACTIVE")
    assert doctor_rdma.nodes(machine / "sys", machine / "dev").state == "ok"
    node.unlink()
    finding = doctor_rdma.nodes(machine / "sys", machine / "dev")
    assert (finding.state, finding.found) == ("slow", f"{node} of mlx5_1 is not there")
    assert "--device" in finding.advice
    (machine / "dev/infiniband/uverbs3").unlink()
    assert doctor_rdma.nodes(machine / "sys", machine / "dev").state == "off"


def test_a_device_without_verbs(machine: Path) -> None:
    device(machine, "mlx5_0", 0, "4: ACTIVE")
    (machine / "sys/class/infiniband_verbs/uverbs0/ibdev").write_text("another\n")
    finding = doctor_rdma.nodes(machine / "sys", machine / "dev")
    assert (finding.state, finding.advice) == ("off", "modprobe ib_uverbs")


def test_nodes_that_may_not_be_opened(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = device(machine, "mlx5_0", 0, "4: ACTIVE")
    monkeypatch.setattr(os, "access", lambda path, mode: path != node)  # root may open anything
    finding = doctor_rdma.nodes(machine / "sys", machine / "dev")
    assert (finding.state, finding.found) == ("off", f"{node} of mlx5_0 may not be opened")
    assert "chmod" in finding.advice


@pytest.mark.parametrize(
    ("limit", "effective", "state"),
    [
        (resource.RLIM_INFINITY, 0, "ok"),
        (8 << 20, 0, "off"),
        (64 << 30, 0, "slow"),
        (8 << 20, 1 << 14, "ok"),
        (8 << 20, ~(1 << 14) & (1 << 41) - 1, "off"),
    ],
)
def test_memory_that_may_be_registered(machine: Path, limit: int, effective: int, state: str) -> None:
    (machine / "proc/self/status").write_text(f"CapPrm:\t{(1 << 41) - 1:016x}\nCapEff:\t{effective:016x}\n")
    finding = doctor_rdma.registered_memory(machine / "proc", limit)
    assert finding.state == state
    assert bool(finding.advice) == (state != "ok")


def test_pyverbs_that_fits(machine: Path) -> None:
    finding = doctor_rdma.pyverbs(installed(machine))
    assert (finding.state, finding.advice) == ("ok", "")
    assert finding.found.endswith("fits libibverbs of release 44.0")


def test_either_half_is_missing(machine: Path) -> None:
    whole = installed(machine)
    assert doctor_rdma.pyverbs(Verbs(None, whole.library)).found == "no pyverbs"
    assert doctor_rdma.pyverbs(Verbs(whole.pyverbs, None)).found == "no libibverbs"
    finding = doctor_rdma.pyverbs(Verbs(None, None))
    assert (finding.state, finding.found) == ("off", "no pyverbs and no libibverbs")
    assert "make setup-rdma" in finding.advice


def test_halves_of_two_releases(machine: Path) -> None:
    finding = doctor_rdma.pyverbs(installed(machine, wants=59))
    assert finding.state == "off"
    assert "IBVERBS_PRIVATE_59" in finding.found and "release 44.0, has IBVERBS_PRIVATE_34" in finding.found
    assert "make setup-rdma" in finding.advice


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('undefined symbol: ibv_x')", "ImportError: undefined symbol: ibv_x"),
        ("import os; os.kill(os.getpid(), 11)", "ended by signal 11"),
    ],
)
def test_pyverbs_that_does_not_import(machine: Path, code: str, why: str) -> None:
    """However the import ends, the doctor goes on."""
    finding = doctor_rdma.pyverbs(installed(machine, code=code))
    assert finding.state == "off"
    assert finding.found.endswith(f"does not import: {why}")


def test_the_interpreter_has_no_pyverbs(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(machine)])
    assert doctor_rdma.verbs_here(Path("/proc")).pyverbs is None
    monkeypatch.setattr("sys.path", [str(machine), str(machine / "site")])
    assert doctor_rdma.verbs_here(Path("/proc")).pyverbs is None
    whole = installed(machine)
    assert doctor_rdma.verbs_here(Path("/proc")).pyverbs == whole.pyverbs


def test_what_needs_a_device_is_asked_where_there_is_one(machine: Path) -> None:
    whole = installed(machine)
    roots = (machine / "sys", machine / "dev", machine / "proc")
    assert [each.subject for each in doctor_rdma.rdma(*roots, whole)] == ["RDMA", "pyverbs"]
    device(machine, "mlx5_0", 0, "4: ACTIVE")
    found = [each.subject for each in doctor_rdma.rdma(*roots, whole)]
    assert found == ["RDMA", "RDMA access", "RDMA memory", "pyverbs"]


def two_sockets(root: Path) -> Sysfs:
    sysfs = Sysfs(root / "both")
    sysfs.nodes("10 21", "21 10")
    sysfs.nic("mlx5_0", ROOT_A, "0000:00:01.0", "0000:01:00.0")
    sysfs.nic("mlx5_1", ROOT_B, "0000:80:01.0", "0000:81:00.0", numa=1)
    return sysfs


def test_rails_near_each_memory(tmp_path: Path) -> None:
    sysfs = two_sockets(tmp_path)
    (finding,) = rails(sysfs.root, ask=lambda *_: 0)
    assert (finding.state, finding.advice) == ("ok", "")
    assert finding.found == "node 0: mlx5_0; node 1: mlx5_1; others while these are down"
    gpu = sysfs.pci(ROOT_B, "0000:80:01.0", "0000:3b:00.0", numa=1)
    (gpu / "vendor").write_text("0x10de\n")
    (gpu / "class").write_text("0x030200\n")
    (finding,) = rails(sysfs.root, ask=lambda *_: 0)
    assert finding.found == "node 0: mlx5_0; node 1: mlx5_1; GPU 0000:3b:00.0: mlx5_1; others while these are down"


def test_rails_where_the_kernel_does_not_say_where_memory_lies(tmp_path: Path) -> None:
    def refused(_address: int, _count: int) -> int | None:
        raise PermissionError(1, "Operation not permitted")

    (finding,) = rails(two_sockets(tmp_path).root, ask=refused)
    assert finding.state == "slow" and "SYS_NICE" in finding.advice
    assert finding.found.endswith("(move_pages: Operation not permitted): all NICs are used for it")


def test_rails_of_one_socket_are_alike(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "one")
    sysfs.nic("mlx5_0", ROOT_A, "0000:01:00.0")
    assert rails(sysfs.root) == [], "there is nothing to choose from"
    sysfs.nic("mlx5_1", ROOT_A, "0000:02:00.0")
    sysfs.nodes("10 21", "21 10")
    (finding,) = rails(sysfs.root)
    assert (finding.state, finding.found) == ("ok", "all NICs are used: none is nearer to any memory than another")
