"""The directory of a file tier: one owner, refused when it cannot be, cut the same way or not believed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from kvstore.errors import Misconfigured
from kvstore.tiers.data_dir import DataDir, Geometry, room_bytes, slab_bytes_for

SMALL = Geometry(slab_bytes=64 << 10, slabs_per_file=4, slabs=10)


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "tier")
    made.acquire()
    return made


def test_geometry_fits_the_slots_it_was_made_for() -> None:
    assert slab_bytes_for(10 << 30) // ((2 << 20) + 4096) == 32
    geometry = Geometry.of(10 << 30)
    assert geometry.slab_bytes == slab_bytes_for(10 << 30)
    assert geometry.size <= 10 << 30 < geometry.size + geometry.slab_bytes
    assert geometry.file_bytes <= 1 << 30
    assert sum(geometry.bytes_of_file(i) for i in range(geometry.files)) == geometry.size
    with pytest.raises(Misconfigured, match=r"file\.bytes = 1 MiB: must be at least one slab, 2 MiB.*file\.slab_bytes"):
        Geometry.of(1 << 20, 2 << 20)


@pytest.mark.parametrize("mib", [1, 2, 3, 7, 33, 64, 100, 128, 129, 255, 512, 513, 577, 640, 1000, 1024, 10_240])
def test_a_tier_uses_what_was_asked_for(mib: int) -> None:
    asked = mib << 20
    geometry = Geometry.of(asked)
    assert 0.9 * asked < geometry.size <= asked
    assert geometry.slabs >= 8, "each slab serves one block size at a time"
    payload = 1 << (geometry.slab_bytes.bit_length() - 1)
    assert 64 << 10 <= payload <= 64 << 20
    block = min(payload, 2 << 20)
    assert geometry.slab_bytes // (block + 4096) * block == payload, "blocks of 2 MiB, or one, fill a slab"


def test_slabs_stay_as_they_are_while_they_use_the_tier() -> None:
    """So that a tier whose size is chosen from what the disk has is found again when that has changed a little."""
    former = Geometry.of(515 << 20)
    assert former.slab_bytes == slab_bytes_for(10 << 30)
    assert Geometry.of(512 << 20).slab_bytes < former.slab_bytes
    assert Geometry.of(512 << 20, former=former).slab_bytes == Geometry.of(512 << 20).slab_bytes, "an eighth is lost"
    assert Geometry.of(450 << 20, former=former) == Geometry(former.slab_bytes, former.slabs_per_file, 7)
    assert Geometry.of(450 << 20, 1 << 20, former).slab_bytes == 1 << 20, "what is said is done"


def test_files_are_allocated_in_full(data_dir: DataDir) -> None:
    paths = data_dir.allocate(SMALL)
    assert [path.stat().st_size for path in paths] == [256 << 10, 256 << 10, 128 << 10]
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in paths)
    assert [path.name for path in data_dir.allocate(Geometry(64 << 10, 4, 3))] == ["slots-00000"]
    assert sorted(path.name for path in data_dir.path.glob("slots-*")) == ["slots-00000"]


def test_a_tier_that_shrinks_gives_its_bytes_back(data_dir: DataDir) -> None:
    data_dir.allocate(SMALL)
    (path,) = data_dir.allocate(Geometry(64 << 10, 4, 3))
    assert path.stat().st_size == 192 << 10


def test_two_nodes_on_one_directory(data_dir: DataDir) -> None:
    with pytest.raises(Misconfigured, match="another node"):
        DataDir(data_dir.path).acquire()
    data_dir.release()
    DataDir(data_dir.path).acquire()


def test_what_was_cut_alike_is_found_again(data_dir: DataDir) -> None:
    assert not data_dir.adopt(SMALL)
    assert data_dir.adopt(SMALL)
    assert data_dir.adopt(Geometry(64 << 10, 4, 20))  # grown: slots lie where they lay
    assert not data_dir.adopt(Geometry(128 << 10, 4, 20))
    (data_dir.path / "superblock.json").write_text('{"format": 1, "slab_bytes": "x"')
    assert not data_dir.adopt(SMALL)
    for other in (
        "[]",
        json.dumps({**_superblock(SMALL), "format": 0}),
        json.dumps({**_superblock(SMALL), "format": "1"}),
    ):
        (data_dir.path / "superblock.json").write_text(other)
        assert not data_dir.adopt(SMALL)
        assert data_dir.adopt(SMALL), "written anew"


def _superblock(geometry: Geometry) -> dict[str, object]:
    return {
        "format": 1,
        "slab_bytes": geometry.slab_bytes,
        "slabs_per_file": geometry.slabs_per_file,
        "slabs": geometry.slabs,
    }


def test_a_newer_format_is_refused(data_dir: DataDir) -> None:
    (data_dir.path / "superblock.json").write_text(
        json.dumps({"format": 2, "slab_bytes": 1, "slabs_per_file": 1, "slabs": 1})
    )
    with pytest.raises(Misconfigured, match="format 2"):
        data_dir.adopt(SMALL)


def test_a_disk_that_is_too_small_is_refused_and_left_as_it_was(data_dir: DataDir) -> None:
    huge = Geometry.of(room_bytes(data_dir.path) * 2)
    with pytest.raises(Misconfigured, match=r"file\.bytes = .+iB does not fit the disk: .+iB are free"):
        data_dir.allocate(huge)
    assert list(data_dir.path.glob("slots-*")) == []


def test_a_disk_that_fills_up_meanwhile(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def fallocate(fd: int, offset: int, length: int) -> None:
        if len(list(data_dir.path.glob("slots-*"))) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(Misconfigured, match="No space left"):
        data_dir.allocate(SMALL)
    assert list(data_dir.path.glob("slots-*")) == []


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="cannot be written"):
        DataDir(tmp_path / "file" / "tier").acquire()


def _acquire_as_nobody(path: Path, answer: multiprocessing.SimpleQueue[str]) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anything
    try:
        DataDir(path).acquire()
    except Misconfigured as error:
        answer.put(str(error))
    else:
        answer.put("")


def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tier"
    path.mkdir()
    path.chmod(0o555)
    for parent in (tmp_path, *list(tmp_path.parents)[:-1]):
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_acquire_as_nobody, args=(path, answer))
    child.start()
    child.join()
    assert "cannot be written" in answer.get()
