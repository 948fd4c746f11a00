"""Whether the doctor and a node's start say the same of the same settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvstore import doctor_node
from kvstore.clock import SystemClock
from kvstore.config import (
    GIB,
    MIB,
    Config,
    FileConfig,
    GrpcConfig,
    MemoryConfig,
    NodeConfig,
    SecurityConfig,
    TransferConfig,
)
from kvstore.errors import Misconfigured
from kvstore.event_settings import EventsConfig
from kvstore.finding import Finding
from kvstore.node import segments
from kvstore.node.file_store import FileStore, choose_bytes
from kvstore.node.segments import Segments
from tests.certificates import Authority


class Disk:
    """What statvfs says of one."""

    def __init__(self, total: int, free: int) -> None:
        self.f_frsize, self.f_blocks, self.f_bavail = 1, total, free


@pytest.mark.parametrize(
    ("config", "room", "chosen"),
    [
        (FileConfig(), 100 * GIB, 10 * GIB),
        (FileConfig(), 8 * GIB, 4 * GIB),
        (FileConfig(bytes=GIB), 8 * GIB, GIB),
        (FileConfig(bytes=GIB), GIB // 2, GIB),  # refused then, by name
        (FileConfig(bytes=GIB, shrink=True), GIB // 2, GIB // 4),
        (FileConfig(bytes=GIB, shrink=True), 8 * GIB, GIB),
    ],
)
def test_the_size_of_the_file_tier(config: FileConfig, room: int, chosen: int) -> None:
    assert choose_bytes(config, room) == chosen


def test_a_data_directory(tmp_path: Path) -> None:
    assert doctor_node.data_directory(tmp_path).state == "ok"
    yet = doctor_node.data_directory(tmp_path / "not" / "yet")
    assert (yet.state, yet.found) == ("ok", f"{tmp_path}/not/yet, to be made")
    (tmp_path / "file").touch()
    for path in (Path("/proc/kvstore"), tmp_path / "file" / "below"):
        found = doctor_node.data_directory(path)
        assert found.state == "bad" and f"{path} cannot be written" in found.found and found.advice
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_looked_into_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed" / "below").mkdir(parents=True)
    really = Path.exists

    def exists(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert doctor_node.existing(tmp_path / "closed" / "below") == tmp_path / "closed"


def memory(tmp_path: Path, **settings: int) -> Config:
    return Config(
        node=NodeConfig(data_dir=tmp_path, name="here"),
        memory=MemoryConfig(directory=tmp_path, **settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("disk", "settings", "state", "says"),
    [
        (Disk(8 * GIB, 8 * GIB), {}, "ok", "8 GiB free of 8 GiB"),
        (Disk(64 * MIB, 64 * MIB), {}, "slow", "the memory tier takes 28 MiB"),  # as docker has it: small, and a start
        (Disk(8 * GIB, GIB), {}, "slow", "takes 448 MiB"),
        (Disk(8 * GIB, 8 * GIB), {"bytes": 9 * GIB}, "bad", "memory.bytes = 9 GiB"),
        (Disk(8 * GIB, 8 * GIB), {"bytes": 64 * MIB, "slab_bytes": 64 * MIB}, "bad", "at least two slabs"),
        (Disk(8 * GIB, 0), {}, "bad", "at least two slabs"),
    ],
)
def test_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, settings: dict[str, int], state: str, says: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    found = doctor_node.shared_memory(memory(tmp_path, **settings))
    assert (found.state, bool(found.advice)) == (state, state != "ok")
    assert says in found.found
    assert not list(tmp_path.iterdir())


def test_shared_memory_that_the_node_has_already_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found again, so a full tmpfs is no reason not to start."""
    config = memory(tmp_path, bytes=4 * MIB)
    there = Segments(config.memory, "here")
    there.open()
    there.close(keep=True)
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(8 * GIB, 1))
    assert doctor_node.shared_memory(config).state == "slow"  # full, and so to be looked at
    assert segments.planned(config.memory, "here").bytes == 4 * MIB
    with pytest.raises(Misconfigured, match=r"memory\.bytes = 4 MiB: .* has 1 B free"):
        segments.planned(config.memory, "another")


def test_no_shared_memory_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_node.shared_memory(memory(tmp_path / "absent")).state == "bad"
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    found = doctor_node.shared_memory(memory(tmp_path))
    assert (found.state, found.found) == ("bad", f"memory.directory = '{tmp_path}': cannot be written")


@pytest.mark.parametrize(
    ("settings", "state", "says"),
    [
        ({}, "ok", "takes 10.0 GiB of 100 GiB"),
        ({"enabled": False}, "off", "file.enabled = false"),
        ({"bytes": 200 * GIB}, "bad", "does not fit the disk: 100 GiB are free for it"),
        ({"bytes": 200 * GIB, "shrink": True}, "ok", "takes 50"),
        ({"bytes": 1000}, "bad", "must be at least one slab"),
    ],
)
def test_the_file_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], state: str, says: str
) -> None:
    """The start refuses what is bad, and nothing else."""
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(100 * GIB, 100 * GIB))
    config = FileConfig(**settings)  # type: ignore[arg-type]
    found = doctor_node.file_tier(config, tmp_path / "files")
    assert (found.state, says in found.found) == (state, True), found
    assert not list(tmp_path.iterdir())
    if state == "bad":
        with pytest.raises(Misconfigured) as refused:
            FileStore(config, tmp_path / "files", SystemClock()).prepare()
        assert str(refused.value) == found.found


def test_files_of_a_newer_format_are_not_to_be_taken(tmp_path: Path) -> None:
    (tmp_path / "superblock.json").write_text('{"format": 2, "slab_bytes": 1, "slabs_per_file": 1, "slabs": 1}')
    found = doctor_node.file_tier(FileConfig(bytes=4 * MIB), tmp_path)
    assert found.state == "bad" and "format 2" in found.found


def test_doors(tmp_path: Path) -> None:
    home = NodeConfig(data_dir=tmp_path, socket=tmp_path / "kv.sock")
    found = doctor_node.doors(Config(node=home))
    assert (found.state, found.found.split(", ")) == (
        "ok",
        [f"unix:{tmp_path}/kv.sock", "127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:9464"],
    )
    exposed = GrpcConfig(address="0.0.0.0:1")
    aloud = doctor_node.doors(Config(node=home, grpc=exposed, security=SecurityConfig(insecure=True)))
    assert aloud.state == "slow" and "INSECURE" in aloud.found
    pair = Authority(tmp_path, "ca").sign("node", server=True)
    other = Authority(tmp_path, "other").sign("node-2", server=True)
    access = tmp_path / "access.toml"
    access.write_text("[[token]]\n")
    access.chmod(0o600)
    for config, says in (
        (Config(node=home, grpc=exposed), "reachable from other machines"),
        (Config(node=home, security=SecurityConfig(pair.certificate, other.private_key)), "security.certificate"),
        (Config(node=home, security=SecurityConfig(access_file=access)), "security.access_file"),
        (Config(node=home, transfer=TransferConfig(address="0.0.0.0:1")), "transfer.address"),
        (Config(node=home, transfer=TransferConfig(rdma_address="0.0.0.0:1")), "transfer.rdma"),
        (Config(node=NodeConfig(data_dir=tmp_path, socket=Path("/" + "x" * 200))), "node.socket"),
    ):
        found = doctor_node.doors(config)
        assert found.state == "bad" and says in found.found and found.advice, found


def test_kv_events(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_node.kv_events(Config()).state == "off"
    here = Config(events=EventsConfig(zmq="tcp://127.0.0.1:5557", replay="ipc:///run/kv"))
    assert doctor_node.kv_events(here) == Finding("KV events", "ok", "tcp://127.0.0.1:5557, ipc:///run/kv")
    everywhere = EventsConfig(zmq="tcp://0.0.0.0:5557")
    sealed = SecurityConfig(certificate=Path("c"), private_key=Path("k"), client_ca=Path("a"))
    for security in (SecurityConfig(), sealed):
        found = doctor_node.kv_events(Config(events=everywhere, security=security))
        assert found.state == "bad" and "tcp://0.0.0.0:5557: reachable from other machines" in found.found
    found = doctor_node.kv_events(Config(events=everywhere, security=SecurityConfig(insecure=True)))
    assert found.state == "slow" and "the tokens of prompts" in found.found
    monkeypatch.setattr(doctor_node, "missing", lambda: "pyzmq")
    found = doctor_node.kv_events(here)
    assert (found.state, found.found) == ("bad", "pyzmq is not installed") and "kvstore[events]" in found.advice
