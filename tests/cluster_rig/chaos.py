"""`make chaos`: five nodes, etcd and five engines on machines of their own, and for ten minutes (CHAOS_SECONDS)
whatever a seed (CHAOS_SEED, else drawn and printed) thinks of: processes killed, stopped and started, memory and disks
lost, links cut one way or both, slow or lossy. Every byte that arrives is compared. Then all is mended, and what a
live node holds must be found and got from every node, with nothing left held.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from kvstore.wire import admin
from kvstore.wire.services import AdminStub
from tests.cluster_rig.chaos_check import check
from tests.cluster_rig.chaos_plan import ETCD, Fault, links, operations, plan
from tests.cluster_rig.links import lacking
from tests.cluster_rig.rig import NodeThere, Rig, Told, WrongBytes
from tests.etcd_server import ETCD as ETCD_PROGRAM
from tests.integration.nodes import eventually
from tests.must_run import must_run

DEADLINE_S = 2.0
LATE_S = 3.0  # beyond the deadline: of a machine that is busy with five nodes; not of a store that hangs
PROCESSES = {"kill", "lose", "restart", "stop"}
SETS = (
    "file.enabled=true",
    "file.bytes=16MiB",
    "file.admission=always",
    "cluster.digest_ms=2000",
    "cluster.grace_ms=3000",
)


@dataclass(slots=True)
class Tally:
    """Of one engine."""

    counts: Counter[str] = field(default_factory=Counter)
    took: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, verb: str, blocks: int, told: Told) -> None:
        self.counts[verb] += 1
        self.took.setdefault(verb, []).append(told["s"])
        if told["s"] > DEADLINE_S + LATE_S:
            self.problems.append(f"late: {verb} took {told['s']:.2f} s")
        if "error" in told:
            self.counts[f"{verb}: {told['error']}"] += 1
        elif verb == "get":
            self.counts["hits"] += told["blocks"]
            self.counts["far hits"] += sum(tier > 8 for tier in told["tiers"])
            self.counts["misses"] += blocks - told["blocks"]
        elif verb in {"put", "copy"}:
            self.counts["stored"] += told["stored"]
            self.counts["copied"] += told["stored"] * (told.get("hosts", 1) > 1)


class Chaos:
    """One run over a rig that is up."""

    def __init__(self, rig: Rig, seed: int, faults: list[Fault]) -> None:
        self.rig, self.seed, self.faults = rig, seed, faults
        self.tallies = [Tally() for _ in rig.nodes]
        self.said: list[str] = []  # by nodes whose process has ended
        self.problems: list[str] = []
        self._over = threading.Event()
        self._starting: dict[str, threading.Thread] = {}

    def run(self) -> None:
        engines = [threading.Thread(target=self._ask, args=(i,)) for i in range(self.rig.count)]
        for thread in engines:
            thread.start()
        try:
            self._befall()
        finally:
            self._over.set()
            for thread in engines:
                thread.join()
            for name in tuple(self._starting):
                self._started(name)

    # ---- what clients ask -------------------------------------------------------------------------------------------

    def _ask(self, i: int) -> None:
        engine, tally = self.rig.engines[i], self.tallies[i]
        for operation in operations(self.seed, self.rig.names[i]):
            if self._over.is_set():
                return
            try:
                told = engine.ask(operation.verb, operation.model, operation.seed, operation.blocks, DEADLINE_S)
            except WrongBytes as error:
                tally.counts["wrong"] += 1
                tally.problems.append(f"WRONG BYTES at {self.rig.names[i]}: {error}")
                return
            except (AssertionError, OSError, ValueError) as error:  # no answer at all
                tally.problems.append(f"{self.rig.names[i]}: {operation}: {error!r}")
                return
            tally.add(operation.verb, operation.blocks, told)
            if "error" in told:
                self._over.wait(0.05)

    # ---- what befalls nodes and links -------------------------------------------------------------------------------

    def _befall(self) -> None:
        began = time.monotonic()
        due = [(fault.at_s, True, fault) for fault in self.faults] + [(one.ends_s, False, one) for one in self.faults]
        active: list[Fault] = []
        passed_over: list[Fault] = []
        for at, begins, fault in sorted(due, key=lambda one: one[:2]):
            time.sleep(max(0.0, began + at - time.monotonic()))
            if fault in passed_over:
                continue
            if begins and fault.kind in PROCESSES | {"drain"} and self._is_starting(fault.nodes[0]):
                # Nobody waits for it here: what it waits for may be the end of another fault.
                print(f"{fault}: is still starting, passed over", flush=True)
                passed_over.append(fault)
                continue
            if begins:
                print(fault, flush=True)
                active.append(fault)
            else:
                active.remove(fault)
            if fault.kind in PROCESSES:
                node = self.rig.nodes[self.rig.names.index(fault.nodes[0])]
                (self._strike if begins else self._restore)(fault, node)
            elif fault.kind == "drain":
                self._drain(fault, over=not begins)
            elif fault.kind == "etcd-kill":
                (self.rig.etcd.kill if begins else self.rig.etcd.spawn)()
            else:
                self._link(active)

    def _link(self, active: list[Fault]) -> None:
        machines = self.rig.network.machines
        for name, link in links(active, self.rig.names).items():
            machine = machines[name]
            machine.hear(deaf_to=[machines[other].address for other in link.deaf_to], loss=link.loss)
            if link.megabits:
                machine.slow(link.megabits)
            else:
                machine.fast()

    def _drain(self, fault: Fault, *, over: bool) -> None:
        """Begun or taken back, as an operator on that machine does it; nobody waits for its end."""
        name = fault.nodes[0]
        self._started(name)
        node = self.rig.nodes[self.rig.names.index(name)]
        with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel:
            try:
                next(AdminStub(channel).Drain(admin.DrainRequest(cancel=over), timeout=LATE_S))
            except grpc.RpcError as error:
                self.problems.append(f"{fault}: {error}")

    def _strike(self, fault: Fault, node: NodeThere) -> None:
        self._started(fault.nodes[0])
        if fault.kind == "stop":
            node.signal(signal.SIGSTOP)
            return
        if fault.kind == "restart":
            code = node.stop()
            if code:
                self.problems.append(f"{fault}: ended with {code}")
        else:
            node.kill()
        self.said.append(node.said)
        if fault.kind == "lose":
            shutil.rmtree(node.home / "data")
            for suffix in (".payload", ".meta"):
                Path(node.facts["memory_at"]).with_suffix(suffix).unlink(missing_ok=True)

    def _restore(self, fault: Fault, node: NodeThere) -> None:
        if fault.kind == "stop":
            node.signal(signal.SIGCONT)
            return
        node.process = node.spawn()
        name = fault.nodes[0]
        self._starting[name] = threading.Thread(target=self._start, args=(name, node))
        self._starting[name].start()

    def _start(self, name: str, node: NodeThere) -> None:
        try:
            node.finish_start()
        except AssertionError as error:
            self.problems.append(f"{name} does not start: {error}")

    def _is_starting(self, name: str) -> bool:
        thread = self._starting.get(name)
        return thread is not None and thread.is_alive()

    def _started(self, name: str) -> None:
        thread = self._starting.pop(name, None)
        if thread is not None:
            thread.join()

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """All is as at the start, and everybody sees everybody."""
        self.rig.network.mend()
        self.rig.etcd.wait()
        self.rig.meet(30.0)
        for node in self.rig.nodes:
            eventually(lambda node=node: node.holds() == 0, 60.0)

    def stop(self) -> None:
        for name, node in zip(self.rig.names, self.rig.nodes, strict=True):
            code = node.stop()
            self.said.append(node.said)
            if code:
                self.problems.append(f"{name} ended with {code}")
        for said in self.said:
            at = said.find("Traceback")
            if at >= 0:
                self.problems.append(f"a node's log has: {said[max(0, at - 500) : at + 3000]}")

    def all_problems(self) -> list[str]:
        return [*self.problems, *(problem for tally in self.tallies for problem in tally.problems)]

    def summary(self) -> str:
        counts = sum((tally.counts for tally in self.tallies), Counter[str]())
        kinds = Counter(fault.kind for fault in self.faults)
        verbs = sorted({verb for tally in self.tallies for verb in tally.took})
        lines = [
            f"{sum(counts[verb] for verb in verbs)} operations; {counts['hits']} blocks hit, {counts['far hits']} of "
            f"them far, {counts['misses']} missed; {counts['stored']} stored, {counts['copied']} of "
            "them on two machines",
            f"{len(self.faults)} faults: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            "not served: " + (", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if ": " in what) or "none"),
        ]
        for verb in verbs:
            took = sorted(s for tally in self.tallies for s in tally.took.get(verb, ()))
            p50, p99, most = took[len(took) // 2], took[len(took) * 99 // 100], took[-1]
            lines.append(
                f"{verb}: {len(took)}, p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.0f} ms, slowest {most * 1e3:.0f} ms"
            )
        return "\n".join([*lines, f"wrong bytes: {counts['wrong']}"])


def run(seed: int, seconds: float) -> int:
    faults = plan(seed, seconds, [f"n{i}" for i in range(5)])
    with tempfile.TemporaryDirectory(prefix="kvchaos") as folder, Rig(Path(folder), *SETS) as rig:
        chaos = Chaos(rig, seed, faults)
        chaos.run()
        print("== mended", flush=True)
        chaos.mend()
        if not chaos.all_problems():
            chaos.problems += check(rig)
        chaos.stop()
        print(chaos.summary())
    problems = chaos.all_problems()
    for problem in problems:
        print(f"== FAILED: {problem}")
    print(f"== chaos {'FAILED' if problems else 'passed'}: CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster_rig.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("CHAOS_SECONDS") or 600))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED") or secrets.randbits(32)))
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is taken away again
    lacks = lacking() or ("" if ETCD_PROGRAM else f"no {ETCD} (deploy/dev/setup.sh etcd)")
    if lacks:
        print(f"== chaos is SKIPPED: {lacks}")
        return 1 if "tests/cluster_rig" in must_run() else 0
    print(f"== chaos: CHAOS_SEED={words.seed} CHAOS_SECONDS={words.seconds:g}", flush=True)
    return run(words.seed, words.seconds)


if __name__ == "__main__":
    sys.exit(main())
