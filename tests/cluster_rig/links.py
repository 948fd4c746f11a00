"""Machines that are network namespaces, on one switch, and links between them that can be cut, made slow or lossy.

Nothing of the host's own network is touched: both ends of every cable lie in namespaces made here, whose names have
this process's id. They go with `close`; those of a run that was killed, with whatever still runs in them, with the
next `Network`.

A cut takes IP packets, not ARP, so they vanish: no answer, no error. It is one program at the receiver's end (classic
BPF, which needs no compiler), replaced as a whole. Not every kernel has netem, so a slow link is a token bucket: its
queue is where packets wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_NET = "10.77.0."
_PREFIX = "kvrig"
_CLONE_NEWNET = 0x40000000
_COUNT = itertools.count()

Instruction = tuple[int, int, int, int]


def ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Machine:
    """A namespace with one cable: `address` is where others reach it."""

    def __init__(self, space: str, switch: str, number: int) -> None:
        self.space, self._switch, self._port = space, switch, f"p{number}"
        self.address = f"{_NET}{number + 1}"
        self._deaf_to: frozenset[str] = frozenset()
        self._loss = 0.0
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", self._port, "netns", switch)
        ip("-n", switch, "link", "set", self._port, "master", "sw", "up")
        ip("-n", space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        self._tc("qdisc", "add", "dev", "eth0", "clsact")

    def command(self, words: Sequence[str]) -> list[str]:
        """That runs there: the process itself, no shell around it."""
        return ["ip", "netns", "exec", self.space, *words]

    def do(self, what: Callable[[], T]) -> T:
        """In a thread of this process that has moved there: its sockets are that machine's."""
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                _move_thread(self.space)
                found.append(what())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    # ---- what a link can do -----------------------------------------------------------------------------------------

    def hear(self, *, deaf_to: Iterable[str] = (), loss: float = 0.0) -> None:
        """From now on: IP packets from these addresses vanish on their way here, and `loss` of all others."""
        self._deaf_to, self._loss = frozenset(deaf_to), loss
        program = _program(sorted(self._deaf_to), loss)
        code = f"{len(program)}," + ",".join(" ".join(map(str, one)) for one in program)
        where = ("filter", "replace", "dev", "eth0", "ingress", "prio", "1", "handle", "1")
        self._tc(*where, "bpf", "da", "bytecode", code)

    def cut_from(self, other: Machine) -> None:
        """One way: nothing that `other` sends comes here."""
        self.hear(deaf_to=self._deaf_to | {other.address}, loss=self._loss)

    def lossy(self, loss: float) -> None:
        self.hear(deaf_to=self._deaf_to, loss=loss)

    def slow(self, megabits: float) -> None:
        """In both directions; what does not fit a queue of 300 ms is dropped, as a router does."""
        rate = ("root", "tbf", "rate", f"{megabits}mbit", "burst", "32kb", "latency", "300ms")
        self._tc("qdisc", "replace", "dev", "eth0", *rate)
        _run("tc", "-n", self._switch, "qdisc", "replace", "dev", self._port, *rate)

    def fast(self) -> None:
        for space, device in ((self.space, "eth0"), (self._switch, self._port)):
            if " tbf " in _run("tc", "-n", space, "qdisc", "show", "dev", device, "root"):
                _run("tc", "-n", space, "qdisc", "del", "dev", device, "root")

    def unplug(self) -> None:
        ip("-n", self._switch, "link", "set", self._port, "down")

    def plug(self) -> None:
        ip("-n", self._switch, "link", "set", self._port, "up")

    def mend(self) -> None:
        self.hear()
        self.fast()
        self.plug()

    def pids(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.space).split()]

    def _tc(self, *words: str) -> None:
        _run("tc", "-n", self.space, *words)


class Network:
    """Machines by name; `close` takes them away."""

    def __init__(self, *names: str) -> None:
        sweep()
        self._tag = f"{_PREFIX}-{os.getpid()}-{next(_COUNT)}"
        self._switch = f"{self._tag}-sw"
        self.machines: dict[str, Machine] = {}
        try:
            ip("netns", "add", self._switch)
            ip("-n", self._switch, "link", "add", "sw", "type", "bridge")
            ip("-n", self._switch, "link", "set", "sw", "up")
            for number, name in enumerate(names):
                self.machines[name] = Machine(f"{self._tag}-{name}", self._switch, number)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def split(self, *sides: Sequence[str]) -> None:
        """Nobody of one side hears anybody of another; who is on no side hears all."""
        for side in sides:
            others = [self[name].address for other in sides if other is not side for name in other]
            for name in side:
                self[name].hear(deaf_to=others)

    def mend(self) -> None:
        for machine in self.machines.values():
            machine.mend()

    def close(self) -> None:
        """Whatever still runs there is killed: it was started there by who made this."""
        for space in _spaces():
            if space.startswith(self._tag + "-"):
                _remove(space)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep() -> None:
    """Of runs that are over and could not tidy up."""
    for space in _spaces():
        found = re.fullmatch(rf"{_PREFIX}-(\d+)-\d+-\w+", space)
        if found and not Path(f"/proc/{found[1]}").exists():
            _remove(space)


def _spaces() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines()]


def _remove(space: str) -> None:
    for pid in ip("netns", "pids", space).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    ip("netns", "del", space)


def _move_thread(space: str) -> None:
    with Path(f"/run/netns/{space}").open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {space}")


def _program(sources: Sequence[str], loss: float) -> list[Instruction]:
    """Classic BPF over an Ethernet frame: 2 (drop it) for IPv4 from `sources` and for `loss` of the rest, else -1."""
    tests: list[tuple[int, int]] = [(0x15, int.from_bytes(map(int, source.split(".")), "big")) for source in sources]
    body: list[tuple[int, int]] = [(0x20, 26), *tests]  # the source's address; equal?
    if loss:
        body += [(0x20, 0xFFFFF038), (0x25, round((1 - loss) * 0xFFFFFFFF))]  # a random word; greater?
    drop = 2 + len(body) + 1  # where `ret 2` lies, behind `ret -1`
    program = [(0x28, 0, 0, 12), (0x15, 0, drop - 3, 0x0800)]  # the frame's type; IPv4?
    for at, (code, value) in enumerate(body, 2):
        jumps = drop - at - 1 if code in {0x15, 0x25} else 0
        program.append((code, jumps, 0, value))
    return [*program, (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 2)]


@functools.cache
def lacking() -> str:
    """What this machine lacks to make such a network, or nothing."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)} (apt-get install iproute2)"
    try:
        with Network("probe") as network:
            network["probe"].hear(deaf_to=["10.77.0.99"], loss=0.5)
            network["probe"].slow(10)
            network["probe"].do(lambda: None)
    except OSError as error:
        return f"may not make network namespaces with programs on their links: {error}"
    return ""


needs_network = pytest.mark.skipif(bool(lacking()), reason=lacking() or "-")
