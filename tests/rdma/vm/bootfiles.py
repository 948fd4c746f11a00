"""What the machine starts from: a kernel and an initial file system with the few modules it needs, kept between runs.

The kernel is Debian's package, unpacked and never installed. The flavour for cloud images has neither soft-RoCE nor 9p,
so it is the general one. Its payload is unpacked here, once, since an emulated processor would take seconds over it.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

KEPT_MAX = 3  # 70 MB each
KERNEL = "linux-image-amd64"
# The transports of the file systems and of the output, what soft-RoCE is made of (no module depends on crc32: it is
# asked for by name at run time), cables, and a way to lose what is sent over them. Not crc32-pclmul: emulated, its
# instructions are slower than a table.
MODULES = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),
    *("crc32_generic", "rdma_rxe", "veth", "sch_netem"),
)
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "ip": "iproute2",
    "rdma": "iproute2",
    "setpriv": "util-linux",
}
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class Missing(Exception):
    """This machine lacks something; the message says what, and what to install."""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """`initrd` is all of it but /init, which is the checkout's and is added at each start."""

    kernel: Path
    initrd: Path


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "kvstore" / "rdma-vm"


def require_programs() -> None:
    """Raises Missing with the packages' names."""
    if platform.machine() != "x86_64":
        raise Missing(f"the machine runs this host's programs, and is an x86_64; this host is {platform.machine()}")
    absent = {program: package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None}
    if absent:
        packages = " ".join(sorted(set(absent.values())))
        raise Missing(f"no {', '.join(absent)} here: apt-get install --no-install-recommends {packages}")


def boot_files(cache: Path | None = None) -> BootFiles:
    """Those in the cache, or else made now: 70 MB to download, 70 MB kept. Raises Missing.

    They are made anew when this file or busybox change, not when Debian has a newer kernel: a test that passed without
    a network should not need one tomorrow. Deleting the folder brings the newest.
    """
    require_programs()
    cache = cache or cache_folder()
    busybox = Path(shutil.which("busybox", path=PATH) or "")
    digest = hashlib.sha256(Path(__file__).read_bytes() + busybox.read_bytes()).hexdigest()[:16]
    kept = cache / digest
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new.", dir=cache) as folder:
            work = Path(folder)
            made = work / "made"
            made.mkdir()
            tree = _unpacked_kernel(work)
            _make(tree, busybox, made)
            _forget_all_but(KEPT_MAX - 1, cache)
            # Whoever was first wins: a folder that is there is whole.
            try:
                made.rename(kept)
            except OSError:
                if not kept.is_dir():
                    raise
    return BootFiles(kept / "vmlinux", kept / "initrd")


def _forget_all_but(count: int, cache: Path) -> None:
    """Of the folders that other versions of this file made, the newest stay: checkouts share the cache."""
    older = [path for path in cache.iterdir() if not path.name.startswith("new.")]
    older.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in older[count:]:
        shutil.rmtree(path, ignore_errors=True)


def _said(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, text=True, env={**os.environ, "PATH": PATH, "LC_ALL": "C"}
    ).stdout


def _unpacked_kernel(work: Path) -> Path:
    """The newest kernel package that apt knows, as a tree under `work`."""
    name = _kernel_package()
    if name is None and _refresh():
        name = _kernel_package()
    if name is None:
        raise Missing(f"apt knows no {KERNEL}: Debian's sources, and apt-get update as root")
    for again in (False, True):
        size = re.search(r"^Size: (\d+)$", _said("apt-cache", "show", name), re.MULTILINE)
        megabytes = f"{int(size[1]) / 1e6:.0f} MB" if size else "about 70 MB"
        print(f"rdma-vm: downloading {name} ({megabytes}), once", file=sys.stderr, flush=True)
        try:
            _said("apt-get", "download", "-q", name, cwd=work)
            break
        except subprocess.CalledProcessError as error:
            # The lists may be older than what the mirror still has.
            if again or not _refresh():
                raise Missing(f"apt-get download {name} failed: {error.stderr.strip()}") from error
    (package,) = work.glob("*.deb")
    _said("dpkg-deb", "-x", str(package), str(work / "tree"))
    return work / "tree"


def _kernel_package() -> str | None:
    try:
        found = re.search(r"Depends: (linux-image-\S+)", _said("apt-cache", "depends", KERNEL))
    except subprocess.CalledProcessError:
        return None
    return found[1] if found else None


def _refresh() -> bool:
    """Brings apt's lists up to date where that is allowed."""
    command = ["apt-get", "update", "-q"]
    if os.geteuid() != 0:
        command = ["sudo", "-n", *command]
    try:
        _said(*command)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _make(tree: Path, busybox: Path, into: Path) -> None:
    (image,) = (tree / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    (into / "vmlinux").write_bytes(unpacked(image.read_bytes()))
    modules = in_load_order(module_files(tree / "lib" / "modules" / release), MODULES)
    archive = Archive()
    for folder in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "root", "exchange"):
        archive.folder(folder)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for path in modules:
        content = path.read_bytes()
        archive.file(f"modules/{path.stem}", lzma.decompress(content) if path.suffix == ".xz" else content)
    archive.file("modules/order", "".join(f"{path.stem}\n" for path in modules).encode())
    (into / "initrd").write_bytes(archive.closed())


def unpacked(image: bytes) -> bytes:
    """The ELF kernel in a bzImage, by its setup header (Linux: Documentation/arch/x86/boot.rst)."""
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("not a bzImage")
    sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    kernel = lzma.LZMADecompressor().decompress(image[start : start + length])
    if not kernel.startswith(b"\x7fELF"):
        raise ValueError("the kernel's payload is not ELF")
    return kernel


def module_files(folder: Path) -> dict[str, Path]:
    """A release's modules by name. In names `-` and `_` are one."""
    found = (path for path in folder.rglob("*.ko*") if path.suffix in {".ko", ".xz"})
    return {path.name.split(".")[0].replace("-", "_"): path for path in found}


def in_load_order(files: dict[str, Path], wanted: tuple[str, ...]) -> list[Path]:
    """The wanted modules and all that they need, each after what it needs."""
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order:
            return
        if name not in files:
            raise ValueError(f"the kernel package has no module {name}")
        for needed in needs(files[name]):
            add(needed)
        order[name] = files[name]

    for name in wanted:
        add(name)
    return list(order.values())


def needs(module: Path) -> list[str]:
    """What a module says of itself in its .modinfo section: strings, each ended by a zero."""
    content = module.read_bytes()
    if module.suffix == ".xz":
        content = lzma.decompress(content)
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


class Archive:
    """A cpio archive as the kernel takes it for its first file system (Linux: buffer-format.rst, `newc`)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def folder(self, name: str) -> None:
        self._add(name, 0o040755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._add(name, 0o100000 | mode, content)

    def closed(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, content: bytes) -> None:
        self._entries += 1
        called = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (4), length of the name, no checksum
        fields = (self._entries, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(called), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + called
        self._parts += [_padded(head), _padded(content)]


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
