"""Where a node's memory and secrets lie: sizes, locks, refusals, and that nothing that is mapped is ever truncated."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.config import GIB, MIB, MemoryConfig
from kvstore.errors import Misconfigured
from kvstore.node.home import Home
from kvstore.node.segments import Segments, Size, choose_size


@pytest.mark.parametrize(
    ("config", "former", "free", "size"),
    [
        (MemoryConfig(), None, 100 * GIB, Size(GIB, 64 * MIB)),
        (MemoryConfig(), None, GIB, Size(512 * MIB, 64 * MIB)),
        (MemoryConfig(), 128 * MIB, GIB, Size(128 * MIB, 16 * MIB)),
        (MemoryConfig(bytes=64 * MIB), 128 * MIB, GIB, Size(64 * MIB, 8 * MIB)),
        (MemoryConfig(bytes=MIB), None, GIB, Size(MIB, MIB // 8)),
        (MemoryConfig(bytes=256 << 10), None, GIB, Size(256 << 10, 64 << 10)),
        (MemoryConfig(bytes=100 * MIB, slab_bytes=32 * MIB), None, GIB, Size(96 * MIB, 32 * MIB)),
    ],
)
def test_the_size_of_the_memory_tier(config: MemoryConfig, former: int | None, free: int, size: Size) -> None:
    assert choose_size(config, former, free) == size


def test_a_tier_of_one_slab_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"memory\.bytes = 64 MiB: must be at least two slabs of 64 MiB"):
        choose_size(MemoryConfig(bytes=64 * MIB, slab_bytes=64 * MIB), None, GIB)
    with pytest.raises(Misconfigured, match="at least two slabs"):
        choose_size(MemoryConfig(), None, 100_000)


def opened(tmp_path: Path, **settings: object) -> Segments:
    segments = Segments(MemoryConfig(bytes=4 * MIB, directory=tmp_path, **settings), "t")  # type: ignore[arg-type]
    segments.open()
    return segments


def test_segments_are_whole_private_and_locked(tmp_path: Path) -> None:
    segments = opened(tmp_path)
    payload = tmp_path / "kvstore-t.payload"
    assert payload.stat().st_blocks * 512 >= 4 * MIB, "allocated in full"
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o600, 0o600]
    with pytest.raises(Misconfigured, match="another node uses this segment"):
        opened(tmp_path)
    segments.close(keep=True)
    segments.close(keep=True)
    opened(tmp_path).close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_segment_of_another_size_is_made_anew_and_never_truncated(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.payload.memory[-1:] = b"x"
    old = os.open(first.payload.path, os.O_RDONLY)
    first.close(keep=True)
    second = Segments(MemoryConfig(bytes=2 * MIB, directory=tmp_path), "t")
    second.open()
    with mmap.mmap(old, 4 * MIB, prot=mmap.PROT_READ) as still_there:
        assert still_there[-1:] == b"x"
    assert second.payload.path.stat().st_size == 2 * MIB
    second.close(keep=False)
    os.close(old)


def test_a_payload_that_is_gone_takes_its_index_with_it(tmp_path: Path) -> None:
    first = opened(tmp_path)
    inode = first.meta.path.stat().st_ino
    first.close(keep=True)
    (tmp_path / "kvstore-t.payload").unlink()
    second = opened(tmp_path)
    assert second.meta.path.stat().st_ino != inode
    second.close(keep=False)


def test_a_meta_of_another_format_is_made_anew(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.meta.memory[:16] = b"not a superblock"
    first.close(keep=True)
    second = opened(tmp_path)
    assert bytes(second.meta.memory[:16]) == bytes(16)
    second.close(keep=False)


def test_too_little_shared_memory_is_said_now(tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    too_much = (stats.f_bavail * stats.f_frsize // MIB + 1024) * MIB
    segments = Segments(MemoryConfig(bytes=too_much, directory=tmp_path), "t")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MIB, before[1]))  # should it not be said, the disk is not filled
    try:
        with pytest.raises(Misconfigured, match=r"memory\.bytes = .* free; ask for less"):
            segments.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"memory\.directory = .*No such file"):
        Segments(MemoryConfig(bytes=4 * MIB, directory=tmp_path / "none"), "t").open()


def test_one_node_a_data_directory(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "d"), Home(tmp_path / "d")
    first.acquire()
    with pytest.raises(Misconfigured, match=r"node\.data_dir = .*another node uses this directory"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match=r"node\.data_dir = .*cannot be written"):
        Home(tmp_path / "file").acquire()


def test_the_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    secret = home.secret(None)
    assert len(secret) == 32
    assert home.secret(None) == secret
    assert Home(tmp_path / "..").secret(tmp_path / "secret") == secret
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(Misconfigured, match=r"cluster\.secret_file .*only its owner"):
        home.secret(None)


def test_a_secret_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"cluster\.secret_file .*No such file"):
        Home(tmp_path).secret(tmp_path / "missing")
    short = tmp_path / "short"
    short.write_bytes(b"x" * 31)
    short.chmod(0o600)
    with pytest.raises(Misconfigured, match="31 bytes, must be at least 32"):
        Home(tmp_path).secret(short)


def test_names_of_nodes_follow_their_directory(tmp_path: Path) -> None:
    assert Home(tmp_path / "a").default_name() == Home(tmp_path / "a").default_name()
    assert Home(tmp_path / "a").default_name() != Home(tmp_path / "b").default_name()


def test_a_mount_that_has_huge_pages_gives_them(tmp_path: Path) -> None:
    """tmpfs gives them to who touches, not to who allocates (huge=advise). Asked in a namespace of its own."""
    asked = (
        "import sys; from pathlib import Path; from kvstore.config import MemoryConfig\n"
        "from kvstore.node.segments import Segments\n"
        "segments = Segments(MemoryConfig(bytes=16 << 20, directory=Path(sys.argv[1])), 't'); segments.open()\n"
        "maps = Path('/proc/self/smaps').read_text().split('kvstore-t.payload')[1]\n"
        "print(next(line.split()[1] for line in maps.splitlines() if line.startswith('ShmemPmdMapped')))\n"
    )
    script = 'mount -t tmpfs -o huge=advise,size=64m tmpfs "$1" && exec "$0" -c "$2" "$1"'
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, sys.executable, str(tmp_path), asked]
    done = subprocess.run(own, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no tmpfs with huge pages to be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 16 << 10
