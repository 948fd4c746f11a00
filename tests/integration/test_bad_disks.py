"""Disks that are full or cannot be written, under a real node, in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import Client
from kvstore.errors import KvStoreError
from kvstore.node.home import Home
from tests.integration.nodes import START_MAX_S, NodeProcess, eventually, layout, put, right

IN_A_NAMESPACE = ["unshare", "--map-root-user", "--mount"]
DISK_MIB = 8


@pytest.fixture(autouse=True)
def may_mount(tmp_path: Path) -> None:
    """A skip says what the machine lacks."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1): nothing can be mounted for one process alone")
    tried = subprocess.run(
        [*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"mounting in a namespace of one's own is refused here: {tried.stderr.strip()}")


class OnDisk(NodeProcess):
    """A node that sees `mounts` done first, by a shell."""

    def __init__(self, home: Path, mounts: str, *sets: str, memory: str = "4MiB") -> None:
        super().__init__(home, "memory.keep=false", *sets, memory=memory)  # a refused start leaves no segment
        self.mounts = mounts

    def command(self) -> list[str]:
        return [*IN_A_NAMESPACE, "sh", "-ec", f'{self.mounts}; exec "$@"', "sh", *super().command()]

    def seen(self, path: Path) -> Path:
        """What the node finds there."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{path}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    yield path


def test_a_full_disk_under_the_object_tier_costs_no_put_and_is_used_again_once_there_is_room(
    tmp_path: Path, disk: Path
) -> None:
    sets = (f"object.url=file://{disk}", "object.bytes_max=1GiB", "object.retries=0", "object.sweep_ms=60000")
    with (
        OnDisk(tmp_path, f"mount -t tmpfs -o size={DISK_MIB}m tmpfs {disk}", *sets) as node,
        Client(node.address, deadline_s=30) as client,
    ):
        ns = client.namespace(layout())
        seeds = iter(range(10_000))

        def a_put() -> dict[str, int]:
            assert put(ns, next(seeds), 16) == 16, "a put was not taken whole"
            return node.counters(3)

        eventually(lambda: a_put()["object_write_failures"] > 0, within_s=30)
        for _ in range(20):
            a_put()
        eventually(lambda: a_put()["object_write_failures"] > 1)
        assert a_put()["object_unreachable"] == 0, "it can still be read"
        assert right(ns, next(seeds) - 1, 16) == 16
        assert node.counters(1)["evicted_dirty"] > 0, "what could not be written made way all the same"
        for pack in node.seen(disk).rglob("*"):
            if pack.is_file():
                pack.unlink()
        written = a_put()["object_packs_written"]
        eventually(lambda: a_put()["object_packs_written"] > written + 3, within_s=30)
        assert node.stop() == 0
        assert "Traceback" not in node.said
        told = [line for line in node.said.splitlines() if "No space left on device" in line]
        assert 1 <= len(told) <= 10, "a disk that is full is not helped by hundreds of lines a second"


def test_a_full_disk_under_the_data_directory_costs_no_put_and_a_clear_that_cannot_be_kept_is_refused(
    tmp_path: Path,
) -> None:
    """Files are allocated before; the index, and the list of what was cleared, have no room."""
    data = tmp_path / "data"
    data.mkdir()
    sets = ("file.enabled=true", "file.bytes=8MiB", "file.admission=always", "file.checkpoint_ms=20")
    mount = f"mount -t tmpfs -o size=24m tmpfs {data}"
    with OnDisk(tmp_path, mount, *sets, memory="8MiB") as node, Client(node.address, deadline_s=30) as client:
        ns = client.namespace(layout())
        assert put(ns, 1, 16) == 16
        filler = node.seen(data) / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 12))
        for seed in range(2, 60):
            assert put(ns, seed, 16) == 16
        assert right(ns, 59, 16) == 16
        eventually(lambda: node.counters(2)["file_checkpoint_failures"] > 1)
        assert node.counters(2)["file_write_failures"] == 0, "their place was allocated before"
        other = client.namespace(layout("other"))
        assert (put(other, 1, 4), right(other, 1, 4)) == (4, 4)
        with pytest.raises(KvStoreError, match="not cleared"):
            ns.clear()
        assert (ns.generation, right(ns, 59, 16)) == (0, 16), "neither half cleared nor forgotten"
        filler.unlink()
        assert ns.clear().generation == 1
        assert (right(ns, 59, 16), put(ns, 59, 16), right(ns, 59, 16)) == (0, 16, 16)
        assert node.stop() == 0
        assert "Traceback" not in node.said
        assert node.said.count("checkpoints fail, a restart may forget blocks") == 1, "and not one line each"
        assert "mdb_txn_commit: No space left" in node.said and "checkpoints are written again" in node.said


def read_only(path: Path) -> str:
    return f"mount --bind {path} {path}; mount -o remount,bind,ro {path}"


def refusal(node: NodeProcess) -> str:
    """Of a node that does not start: one line."""
    process = node.spawn()
    _, said = process.communicate(timeout=START_MAX_S)
    assert process.returncode == 2
    return said


@pytest.mark.parametrize("used", [False, True])
def test_a_data_directory_that_cannot_be_written_is_refused_at_start(tmp_path: Path, used: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if used:
        with NodeProcess(tmp_path, "file.enabled=true", "file.bytes=4MiB") as node, Client(node.address) as client:
            put(client.namespace(layout()), 1, 2)
    said = refusal(OnDisk(tmp_path, read_only(data)))
    assert said == f"kvstore node: node.data_dir = '{data}': cannot be written: Read-only file system\n"
    assert not list(Path("/dev/shm").glob(f"kvstore-{Home(data).default_name()}.*")), "of the name that it would have"


def test_a_file_tier_that_cannot_be_written_is_refused_at_start(tmp_path: Path, disk: Path) -> None:
    sets = ("file.enabled=true", "file.bytes=4MiB", f"file.directory={disk}")
    said = refusal(OnDisk(tmp_path, read_only(disk), *sets))
    assert said == f"kvstore node: file tier: {disk}: cannot be written: Read-only file system\n"


def test_an_object_tier_that_cannot_be_written_is_said_at_start_and_costs_no_put(tmp_path: Path, disk: Path) -> None:
    """It may hold what others wrote, which can be read."""
    with (
        OnDisk(tmp_path, read_only(disk), f"object.url=file://{disk}") as node,
        Client(node.address, deadline_s=30) as client,
    ):
        ns = client.namespace(layout())
        for seed in range(50):
            assert put(ns, seed, 16) == 16
        assert right(ns, 49, 16) == 16
        assert node.counters(3)["object_write_failures"] > 0
        assert node.stop() == 0
        assert f"object tier: {disk}: cannot be written: what lies there is read" in node.said.splitlines()[0]
        assert "Traceback" not in node.said
