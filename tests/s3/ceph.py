"""A Ceph object gateway from Debian's packages: one monitor, one OSD in memory, one gateway, all in one directory and
on loopback. About 15 seconds to start, 150 MB of memory.

The steps are those of Ceph's manual deployment; authentication stays on, since the gateway does not start without.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shutil
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

NEEDED = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
START_MAX_S = 120.0
ACCESS_KEY, SECRET_KEY, BUCKET = "kvstoretest", "kvstoretestsecret", "kvpacks"

CONF = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}/0
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {home}/keyring
run dir = {home}/run
admin socket = {home}/run/$name.asok
log file = {home}/log/$name.log
pid file = {home}/run/$name.pid
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data = {home}/mon
mon data avail warn = 1
mon data avail crit = 1
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
[mon]
public addr = v2:127.0.0.1:{mon_port}/0
[osd]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
[client.rgw.a]
rgw data = {home}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
"""


@dataclass(slots=True)
class Gateway:
    """`port`: where S3 is spoken. `restart`: the gateway is killed and started again; the objects stay."""

    home: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]]

    def start_gateway(self) -> None:
        self.run("radosgw", "-f", "-n", "client.rgw.a")

    def kill_gateway(self) -> None:
        process = self.processes.pop("radosgw")
        process.kill()
        process.wait()

    def wait(self) -> None:
        until = time.monotonic() + START_MAX_S
        while not _answers(self.port):
            if time.monotonic() > until or self.processes["radosgw"].poll() is not None:
                raise AssertionError(f"the gateway does not answer: {self.last_words()}")
            time.sleep(0.1)

    def run(self, *command: str) -> None:
        with (self.home / f"{command[0]}.out").open("ab") as out:
            self.processes[command[0]] = subprocess.Popen(
                [*command, "-c", str(self.home / "ceph.conf")], stdout=out, stderr=out
            )

    def tool(self, *command: str, said: bytes | None = None) -> str:
        done = subprocess.run(
            [command[0], "-c", str(self.home / "ceph.conf"), *command[1:]],
            input=said,
            capture_output=True,
            timeout=START_MAX_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()[-2000:]} {self.last_words()}"
        return done.stdout.decode()

    def last_words(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in self.home.glob("*.out"))


def missing() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None]


@contextlib.contextmanager
def ceph(home: Path) -> Iterator[Gateway]:
    """A running gateway with a user and a bucket."""
    for name in ("run", "log", "mon", "osd", "rgw"):
        (home / name).mkdir(parents=True)
    gateway = Gateway(home, free_ports(1)[0], {})
    fsid, mon_port = str(uuid.uuid4()), free_ports(1)[0]
    (home / "ceph.conf").write_text(CONF.format(home=home, fsid=fsid, mon_port=mon_port, port=gateway.port))
    (home / "keyring").write_text(_keyring())
    (home / "keyring").chmod(0o600)
    try:
        _bring_up(gateway, fsid, mon_port)
        yield gateway
    finally:
        for process in reversed(gateway.processes.values()):
            process.kill()
            process.wait()


def _bring_up(gateway: Gateway, fsid: str, mon_port: int) -> None:
    home = gateway.home
    address = f"[v2:127.0.0.1:{mon_port}]"
    subprocess.run(
        ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(home / "monmap")],
        check=True,
        capture_output=True,
    )
    gateway.tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(home / "monmap"), "--keyring", str(home / "keyring"))
    gateway.run("ceph-mon", "-f", "-i", "a")
    osd = str(uuid.uuid4())
    gateway.tool("ceph", "--connect-timeout", "60", "osd", "new", osd)
    gateway.tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    gateway.run("ceph-osd", "-f", "-i", "0")
    gateway.start_gateway()
    gateway.wait()
    gateway.tool(
        "radosgw-admin", "-n", "client.rgw.a", "user", "create", "--uid=kv", "--display-name=kv",
        f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}",
    )  # fmt: skip
    _make_bucket(gateway.port)


def _key() -> str:
    """A cephx key: type, creation time, length, 16 random bytes."""
    now = time.time()
    return base64.b64encode(struct.pack("<hiih", 1, int(now), 0, 16) + os.urandom(16)).decode()


def _keyring() -> str:
    everything = 'caps mon = "allow *"\n\tcaps osd = "allow *"\n\tcaps mgr = "allow *"'
    return "".join(
        f"[{name}]\n\tkey = {_key()}\n\t{everything}\n" for name in ("mon.", "client.admin", "osd.0", "client.rgw.a")
    )


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status in (200, 403)
    except OSError:
        return False
    finally:
        connection.close()


def _make_bucket(port: int) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
