"""Starts the machine, hands its output on as it comes, and ends it: by itself, by a limit, or with this process."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rdma.vm.bootfiles import PATH, Archive, BootFiles

HERE = Path(__file__).resolve().parent
CONSOLE_LINES = 30
# Nothing that is not needed: each device costs time at the start, and mitigations protect nobody here.
KERNEL_LINE = (
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr audit=0 random.trust_cpu=on no_timer_check "
    "tsc=reliable cryptomgr.notests rcupdate.rcu_expedited=1"
)


class MachineFailed(Exception):
    """The machine, not the command in it, failed or passed its limit."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Two processors: one runs the command while the other runs soft-RoCE; with one everything takes twice the time."""

    memory_mib: int = 1536
    cpus: int = 2
    rails: int = 2
    boot_max_s: float = 120.0
    run_max_s: float = 600.0
    qemu: str = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended in the machine. `boot_s` is by the machine's clock."""

    status: int
    boot_s: float


def run(
    command: Sequence[str],
    boot: BootFiles,
    settings: Settings,
    out: Path | None = None,
    say: Callable[[bytes], None] | None = None,
) -> Ended:
    """Runs `command` in the machine as root, in the folder we are in, with our environment. What it writes is lost with
    the machine, except under `out`, a folder that is the same inside and outside. `say` gets its output as it comes.
    """
    with tempfile.TemporaryDirectory(prefix="kvstore-vm.") as folder:
        exchange = Path(folder)
        (exchange / "command").write_text(script(command, settings.rails))
        init = Archive()
        init.file("init", (HERE / "init").read_bytes(), 0o755)
        (exchange / "initrd").write_bytes(boot.initrd.read_bytes() + init.closed())
        if out is not None:
            out = out.resolve()
            out.mkdir(parents=True, exist_ok=True)
            (exchange / "out").write_text(str(out))
        with _started(arguments(boot.kernel, settings, exchange, out), exchange) as (process, said):
            _hand_on(process, said, exchange, settings, say or _to_stdout)
        return _ended(exchange, process.returncode)


def script(command: Sequence[str], rails: int) -> str:
    """What the machine's first process runs: our environment, the rails, then the command in place of the shell.

    A version manager's stand-in for `python3` is slow when emulated, so this interpreter's folder comes first.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if re.fullmatch(r"[A-Za-z_]\w*", name)},
        "PATH": f"{Path(sys.executable).parent}:{PATH}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"cd {shlex.quote(str(Path.cwd()))} || exit 125")
    if rails:
        lines.append(f"sh {shlex.quote(str(HERE / 'rails.sh'))} {rails} || exit 125")
    return "\n".join([*lines, f"exec {shlex.join(command)}", ""])


def arguments(kernel: Path, settings: Settings, exchange: Path, out: Path | None) -> list[str]:
    def shared(tag: str, path: Path, *more: str) -> list[str]:
        # A comma in a value is doubled.
        where = str(path).replace(",", ",,")
        return [
            "-fsdev",
            ",".join(["local", f"id={tag}", f"path={where}", "security_model=none", *more]),
            "-device",
            f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
        ]

    console = str(exchange / "console").replace(",", ",,")
    return [
        *(settings.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,usb=off,vmport=off,hpet=off,smbus=off,sata=off"),
        *("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem"),
        *("-smp", str(settings.cpus), "-m", str(settings.memory_mib)),
        *("-kernel", str(kernel), "-initrd", str(exchange / "initrd"), "-append", KERNEL_LINE),
        *("-serial", f"file:{console}"),
        *shared("root", Path("/"), "readonly=on", "multidevs=remap"),
        *shared("exchange", exchange),
        *(shared("out", out) if out is not None else ()),
        "-device",
        "virtio-serial-pci",
    ]


@contextlib.contextmanager
def _started(arguments: list[str], exchange: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """QEMU with its output port on a pipe. It is gone when the block ends, however that ends, and if we are killed."""
    said, port = os.pipe()
    # A pipe under a file's name: with a chardev on standard input and output, an input that has ended makes what the
    # machine writes wait for ever.
    output = ["-chardev", f"file,id=said,path=/dev/fd/{port}", "-device", "virtserialport,nr=1,chardev=said,name=said"]
    try:
        with (exchange / "qemu").open("wb") as errors:
            try:
                process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *arguments, *output],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(port,),
                    start_new_session=True,  # a Ctrl-C is ours to answer
                )
            finally:
                os.close(port)
        try:
            yield process, said
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        os.close(said)


def _hand_on(
    process: subprocess.Popen[bytes], said: int, exchange: Path, settings: Settings, say: Callable[[bytes], None]
) -> None:
    """Until the pipe ends, which is when QEMU does."""
    start = time.monotonic()
    started = False
    while True:
        took = time.monotonic() - start
        started = started or (exchange / "started").exists()
        if not started and took > settings.boot_max_s:
            raise MachineFailed(f"not up after {settings.boot_max_s:.0f} s{_last_words(exchange)}")
        if took > settings.run_max_s:
            raise MachineFailed(f"ended at its limit of {settings.run_max_s:.0f} s{_last_words(exchange)}")
        if select.select([said], [], [], 0.2)[0]:
            if not (some := os.read(said, 65536)):
                break
            say(some)
    # One that lingers is ended with the block that started it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _ended(exchange: Path, code: int | None) -> Ended:
    status, started = exchange / "status", exchange / "started"
    if not status.exists() or not (text := status.read_text().strip()):
        raise MachineFailed(f"no result; QEMU's exit status is {code}{_last_words(exchange)}")
    return Ended(int(text), float(started.read_text()))


def _last_words(exchange: Path) -> str:
    """The end of the console, and what QEMU itself had to say."""
    words = ""
    for name in ("console", "qemu"):
        path = exchange / name
        if path.exists() and (text := path.read_text(errors="replace").strip()):
            words += f"\n-- the end of its {name}:\n" + "\n".join(text.splitlines()[-CONSOLE_LINES:])
    return words


def _to_stdout(some: bytes) -> None:
    sys.stdout.buffer.write(some)
    sys.stdout.buffer.flush()
