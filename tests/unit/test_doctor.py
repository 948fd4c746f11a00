"""The doctor's findings on made-up machines."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kvstore import doctor
from kvstore.config import Config, FileConfig, MemoryConfig, NodeConfig, ObjectConfig


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("options", "kernel", "state"),
    [
        ("rw,size=8g", "always [advise] never deny force", "slow"),  # of memory without a mount, and so of no use here
        ("rw,huge=never", "[always] never deny force", "slow"),
        ("rw,huge=advise", "always [never] deny force", "ok"),
        ("rw,huge=within_size,size=8g", "always [never] deny force", "ok"),
        ("rw,huge=advise", "always never [deny] force", "slow"),
        ("rw", "always never deny [force]", "ok"),
    ],
)
def test_huge_pages_are_the_mounts_to_give(machine: Path, options: str, kernel: str, state: str) -> None:
    (machine / "sys/kernel/mm/transparent_hugepage/shmem_enabled").write_text(kernel)
    (machine / "proc/mounts").write_text(f"/dev/vda / ext4 rw 0 0\ntmpfs /dev/shm tmpfs {options} 0 0\n")
    finding = doctor.huge_pages(machine / "sys", machine / "proc", Path("/dev/shm"))
    assert finding.state == state
    assert bool(finding.advice) == (state != "ok")


def test_a_hugetlbfs_has_huge_pages(machine: Path) -> None:
    (machine / "proc/mounts").write_text("tmpfs /dev tmpfs rw 0 0\nnone /dev/huge hugetlbfs rw 0 0\n")
    assert doctor.huge_pages(machine / "sys", machine / "proc", Path("/dev/huge")).state == "ok"


def test_direct_io_leaves_nothing_behind(tmp_path: Path) -> None:
    assert doctor.direct_io(tmp_path).state in {"ok", "slow"}
    assert doctor.direct_io(tmp_path / "not" / "yet").state in {"ok", "slow"}
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_is_a_finding(tmp_path: Path) -> None:
    config = Config(node=NodeConfig(data_dir=tmp_path), memory=MemoryConfig(directory=tmp_path / "shm"))
    findings = doctor.examine(config, sysfs=tmp_path / "nothing", proc=tmp_path / "nothing")
    assert [finding.subject for finding in findings][:4] == ["doors", "data directory", "shared memory", "huge pages"]
    assert findings[3].state == "off"
    assert all(finding.advice or finding.state == "ok" or "could not look" in finding.found for finding in findings)


def test_files_are_looked_for_where_the_settings_have_them(tmp_path: Path) -> None:
    elsewhere = tmp_path / "nvme"
    elsewhere.mkdir()
    config = Config(node=NodeConfig(data_dir=tmp_path / "data"), file=FileConfig(directory=elsewhere, bytes=4 << 20))
    told = {each.subject: each.found for each in doctor.examine(config)}
    assert str(elsewhere) in told["file tier"]
    assert str(elsewhere) in told["direct I/O"]


def test_an_object_store_that_answers_and_one_that_does_not(tmp_path: Path) -> None:
    assert doctor.object_store(ObjectConfig(), tmp_path).state == "ok"
    assert doctor.object_store(ObjectConfig(url="none"), tmp_path).state == "off"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = (f"endpoint=http://127.0.0.1:{port}", "access_key_id=a", "secret_access_key=b", "region=us-east-1")
    found = doctor.object_store(ObjectConfig(url="s3://bucket/x", options=options, timeout_ms=1_000), tmp_path)
    assert found.state == "off" and "s3://bucket/x" in found.found and "object.options" in found.advice
    assert doctor.object_store(ObjectConfig(url="gopher://x"), tmp_path).state == "off"
