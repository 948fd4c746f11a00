"""Our side of the peers: processes that are asked for one figure at a time, so that they take turns with ours.

A peer that cannot be installed, started or asked says "not installed" in the rows, and why on the console. Nothing
that a peer does ends our benchmark: each answer has a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from bench.harness import NOT_INSTALLED, Figure, PeerFailed
from bench.peers.install import FOLDER, ROSTER, Say, Spec, install, venv_python

__all__ = ["NO_PEERS", "Peer", "Peers", "alone"]

ROOT = Path(__file__).parents[2]
START_S = 300.0  # it puts what it will be asked for
ANSWER_S = 120.0
END_S = 10.0
Command = Callable[[Spec], Sequence[str]]
Bring = Callable[[Spec], str | None]


def _there(_spec: Spec) -> str | None:
    return None


def alone() -> list[str]:
    """A prefix that gives a command a network of its own, without a way out or in; none where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    prefix = [unshare, "--map-root-user", "--net"]
    try:
        done = subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return prefix if done.returncode == 0 else []


class Peer:
    """One process. Raises PeerFailed, with the reason; after that it is ended."""

    def __init__(self, command: Sequence[str], log: Path, start_s: float = START_S, answer_s: float = ANSWER_S) -> None:
        self._answer_s, self._rest = answer_s, b""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stderr:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
                )
            except OSError as error:
                raise PeerFailed(str(error)) from error
        self._answer(start_s)

    def ask(self, work: str) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{work}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._kill()
            raise PeerFailed("it ended") from error
        value = self._answer(self._answer_s).get("value")
        if not isinstance(value, int | float):
            self._kill()
            raise PeerFailed(f"it answered {value!r}")
        return float(value)

    def close(self) -> None:
        """Its input's end is its word to stop; it is ended where it does not."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):  # what was not written yet has nobody to read it
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _kill(self) -> None:
        """Of one that failed, no good end is expected."""
        self._process.kill()
        self.close()

    def _answer(self, within_s: float) -> dict[str, object]:
        try:
            answer = json.loads(self._line(within_s))
            if not isinstance(answer, dict):
                raise PeerFailed(f"it answered {answer!r}")
            if "reason" in answer:
                raise PeerFailed(str(answer["reason"]))
        except ValueError as error:
            self._kill()
            raise PeerFailed(f"not an answer: {error}") from error
        except PeerFailed:
            self._kill()
            raise
        return answer

    def _line(self, within_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + within_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise PeerFailed(f"no answer within {within_s:g} s")
            if not (some := os.read(self._process.stdout.fileno(), 1 << 16)):
                raise PeerFailed("it ended")
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        return line


class Peers:
    """Those of a roster, each brought (installed, where it is missing) and started when it is first needed, and stopped
    with this. bring: why it cannot be had; None: it is there.
    """

    def __init__(
        self, roster: Sequence[Spec], say: Say, command: Command, folder: Path = FOLDER, bring: Bring = _there
    ) -> None:
        self._roster, self._say, self._command, self._folder, self._bring = roster, say, command, folder, bring
        self._peers: dict[str, Peer | None] = {}

    @classmethod
    def installed(cls, say: Say) -> Peers:
        """A peer that cannot be installed is left out of the running, not of the rows."""
        prefix = alone()

        def command(spec: Spec) -> Sequence[str]:
            return [*prefix, str(venv_python()), "-m", f"bench.peers.{spec.name}"]

        return cls(ROSTER, say, command, bring=lambda spec: install(spec, say))

    def of(self, work: str, note: str = "") -> dict[str, Figure | str]:
        """For the `peers` of a row: all that know this work. `note` says in their labels what they do otherwise."""
        return {spec.label + note: self._figure(spec, work) for spec in self._roster if work in spec.works}

    def _figure(self, spec: Spec, work: str) -> Figure | str:
        if spec.name not in self._peers:
            if reason := self._bring(spec):
                self._peers[spec.name] = None
                self._say(f"{spec.label} not installed: {reason}")
                return NOT_INSTALLED
            try:
                self._peers[spec.name] = Peer(self._command(spec), self._folder / f"{spec.name}.log")
            except PeerFailed as failed:
                self._fail(spec, failed)
        return NOT_INSTALLED if self._peers[spec.name] is None else partial(self._ask, spec, work)

    def _ask(self, spec: Spec, work: str) -> float:
        peer = self._peers[spec.name]
        if peer is None:
            raise PeerFailed("it has failed before")
        try:
            return peer.ask(work)
        except PeerFailed as failed:
            self._fail(spec, failed)
            raise

    def _fail(self, spec: Spec, failed: PeerFailed) -> None:
        self._peers[spec.name] = None
        self._say(f"{spec.label} not measured: {failed} (see {self._folder / spec.name}.log)")

    def close(self) -> None:
        """Those that failed stay out; the others start anew when they are asked for again."""
        for name, peer in list(self._peers.items()):
            if peer is not None:
                peer.close()
                del self._peers[name]

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _nothing(_text: str) -> None:
    """There is nobody to speak of."""


NO_PEERS = Peers((), _nothing, lambda _spec: ())
