"""What the machine of tests/rdma starts from, made of made-up parts."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from tests.rdma.vm import bootfiles
from tests.rdma.vm.bootfiles import Archive, Missing, in_load_order, module_files, unpacked


def module(folder: Path, name: str, *needs: str, packed: bool = False) -> Path:
    content = b"\x7fELF\0license=GPL\0depends=%s\0name=%s\0" % (",".join(needs).encode(), name.encode())
    path = folder / (name + (".ko.xz" if packed else ".ko"))
    path.write_bytes(lzma.compress(content) if packed else content)
    return path


def test_modules_follow_what_they_need(tmp_path: Path) -> None:
    top = module(tmp_path, "rdma_rxe", "ib_core", "udp-tunnel")
    core = module(tmp_path, "ib_core", "leaf")
    tunnel = module(tmp_path, "udp_tunnel", "leaf")
    leaf = module(tmp_path, "leaf", packed=True)
    module(tmp_path, "not_needed")
    assert in_load_order(module_files(tmp_path), ("rdma_rxe", "leaf")) == [leaf, core, tunnel, top]
    with pytest.raises(ValueError, match="no module veth"):
        in_load_order(module_files(tmp_path), ("veth",))


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name, mode and content of a newc archive's entries, by its description in Linux' buffer-format.rst."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        body = (at + 110 + length + 3) // 4 * 4
        found[name[:-1].decode()] = (mode, archive[body : body + size])
        at = (body + size + 3) // 4 * 4
    assert at == len(archive)
    return found


def test_an_archive() -> None:
    archive = Archive()
    archive.folder("bin")
    archive.file("bin/odd", b"\x00\xff\n" * 7, 0o755)
    archive.file("empty", b"")
    assert entries(archive.closed()) == {
        "bin": (0o040755, b""),
        "bin/odd": (0o100755, b"\x00\xff\n" * 7),
        "empty": (0o100644, b""),
        "TRAILER!!!": (0, b""),
    }


def test_the_kernel_in_its_image() -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 40
    packed = lzma.compress(kernel, lzma.FORMAT_XZ) + struct.pack("<I", len(kernel))
    head = bytearray(512 * 3)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(packed))
    image = bytes(head) + b"startup code 16B" + packed + b"tail"
    assert unpacked(image) == kernel
    with pytest.raises(ValueError, match="bzImage"):
        unpacked(bytes(4096))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootfiles, "PATH", str(tmp_path))
    with pytest.raises(Missing, match=r"apt-get install --no-install-recommends apt busybox-static .*qemu-system-x86"):
        bootfiles.boot_files(tmp_path)
    for program in bootfiles.PROGRAMS:
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    bootfiles.require_programs()


def test_no_kernel_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed download names itself and leaves nothing in the cache."""
    for program in bootfiles.PROGRAMS:
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "apt-cache").write_text("#!/bin/sh\necho '  Depends: linux-image-9-amd64'\n")
    (tmp_path / "apt-cache").chmod(0o755)
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setattr(bootfiles, "PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Missing, match="apt-get download linux-image-9-amd64 failed"):
        bootfiles.boot_files(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_is_kept_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(tree: Path, busybox: Path, into: Path) -> None:
        made.append(into)
        (into / "vmlinux").write_bytes(b"kernel")
        (into / "initrd").write_bytes(b"rest")

    monkeypatch.setattr(bootfiles, "require_programs", lambda: None)
    monkeypatch.setattr(bootfiles, "_unpacked_kernel", lambda work: work)
    monkeypatch.setattr(bootfiles, "_make", make)
    monkeypatch.setattr(bootfiles.shutil, "which", lambda name, path: __file__)
    for older in range(5):
        (tmp_path / f"older{older}").mkdir()
    first = bootfiles.boot_files(tmp_path)
    assert bootfiles.boot_files(tmp_path) == first
    assert first.kernel.read_bytes() == b"kernel" and len(made) == 1
    assert len(list(tmp_path.iterdir())) == bootfiles.KEPT_MAX
