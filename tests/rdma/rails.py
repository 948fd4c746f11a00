"""The machine's cables, seen from the tests: which devices they join, and ways to break and mend them."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/class/infiniband")
MEND_MAX_S = 30.0
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)


@dataclass(frozen=True, slots=True)
class Rail:
    """Cable N of vm/rails.sh."""

    number: int

    @property
    def near(self) -> str:
        return f"rxe_a{self.number}"

    @property
    def far(self) -> str:
        return f"rxe_b{self.number}"

    def gid(self, device: str) -> tuple[int, str]:
        """Where in the device's table its RoCE v2 GID for its IPv4 address lies, and the GID. LookupError without."""
        port = SYSFS / device / "ports" / "1"
        mapped = f"0000:0000:0000:0000:0000:ffff:0a00:{self.number:02x}{1 if device == self.near else 2:02x}"
        for path in sorted((port / "gids").iterdir(), key=lambda path: int(path.name)):
            if path.read_text().strip() == mapped:
                with contextlib.suppress(OSError):  # an entry that is on its way out
                    if (port / "gid_attrs/types" / path.name).read_text().strip() == "RoCE v2":
                        return int(path.name), mapped
        raise LookupError(f"{device} has no RoCE v2 GID {mapped}")

    def active(self, device: str) -> bool:
        return "ACTIVE" in (SYSFS / device / "ports/1/state").read_text()

    @contextlib.contextmanager
    def down(self, device: str) -> Iterator[None]:
        """The network device under `device` is down: the carrier is lost at both ends, and at once: a program to do it
        would take an emulated quarter of a second to start.
        """
        _take_down(_netdev(device))
        try:
            yield
        finally:
            self._up(device)

    @contextlib.contextmanager
    def deaf(self, device: str) -> Iterator[None]:
        """What `device` sends is lost on its way; its link stays up."""
        netdev = _netdev(device)
        _run(f"tc qdisc add dev {netdev} root netem loss 100%")
        try:
            yield
        finally:
            _run(f"tc qdisc del dev {netdev} root")

    @contextlib.contextmanager
    def silent(self, device: str) -> Iterator[None]:
        """As `deaf`, and no address has to be asked for: queue pairs connect, and nothing comes back."""
        n = self.number
        ends = (("a", 2, "b"), ("b", 1, "a"))
        for end, host, other in ends:
            lladdr = Path(f"/sys/class/net/{other}{n}/address").read_text().strip()
            _ip(f"neigh replace 10.0.{n}.{host} lladdr {lladdr} dev {end}{n} nud permanent")
        try:
            with self.deaf(device):
                yield
        finally:
            for end, host, _ in ends:
                _ip(f"neigh del 10.0.{n}.{host} dev {end}{n}")

    def _up(self, device: str) -> None:
        """The link, the route that went with it, and the GID, which the kernel brings back a little later."""
        _ip(f"link set {_netdev(device)} up")
        n = self.number
        _ip(f"route replace 10.0.{n}.2 dev a{n} src 10.0.{n}.1 table 10")
        _ip(f"route replace 10.0.{n}.1 dev b{n} src 10.0.{n}.2 table 10")
        end = time.monotonic() + MEND_MAX_S
        while True:
            with contextlib.suppress(LookupError):
                if [self.gid(each) for each in (self.near, self.far)] and self.active(device):
                    return
            assert time.monotonic() < end, f"rail {n} is not mended"
            time.sleep(0.05)


def _netdev(device: str) -> str:
    return device.removeprefix("rxe_")


def _take_down(netdev: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        name = netdev.encode()
        (flags,) = struct.unpack_from("h", fcntl.ioctl(plain, _SIOCGIFFLAGS, struct.pack("16sh14x", name, 0)), 16)
        fcntl.ioctl(plain, _SIOCSIFFLAGS, struct.pack("16sh14x", name, flags & ~_IFF_UP))


def _ip(words: str) -> None:
    _run(f"ip {words}")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)
