"""Second part: prefill and decode at nodes that share nothing; then the prefill node dies, and its data with it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from rich.console import Console

from kvstore.admin import rows as admin_rows
from kvstore.admin.connection import CALL_S, OPERATORS, Connection
from kvstore.demo.child import Child
from kvstore.wire import admin

from .conversation import Conversation, conversations
from .report import show
from .report_cluster import FAR, OBJECTS, OWN, Act, Death, Lay, cluster_verdict, moved_told, show_lay
from .stage import Stage, StagedNode, free_addresses
from .turn import BLOCK_TOKENS, NEW_TOKENS, converse, decoded, prefilled, worker_flags

__all__ = ["run"]

TIERS = {OWN: 1, FAR: 9, OBJECTS: 3}
TURNS = 2
USERS = 2  # that are answered before the death; one more has only been prefilled by then
BLOCK_BYTES_OF_LAYER = 2 * 4 * 64 * 4 * BLOCK_TOKENS  # keys and values, heads, their width, float32
WAIT_S = 20.0


def run(arguments: Namespace, console: Console, scratch: Path) -> list[str]:
    """What went wrong, in words."""
    longest = arguments.system_tokens + TURNS * (arguments.said_tokens + NEW_TOKENS)
    with Stage(scratch) as stage:
        start = time.monotonic()
        nodes = _nodes(stage, arguments, scratch / "objects", console)
        flags = worker_flags(arguments.layers, longest)
        prefill, decode = (stage.worker(*who, flags) for who in _attached(nodes))
        prefill.answer(), decode.answer()
        console.print(f"All five are up and warm after {time.monotonic() - start:.0f} s.\n", highlight=False)
        talks = conversations(USERS + 1, arguments.system_tokens, seed=11)
        act = Play(nodes, prefill, decode, console, arguments.said_tokens).play(talks[:USERS], talks[USERS])
    return cluster_verdict(act)


def _nodes(stage: Stage, arguments: Namespace, objects: Path, console: Console) -> list[StagedNode]:
    """The first holds one user's prompt and what another one says, so what leaves it goes to objects; the others hold
    everything.
    """
    prompt = (arguments.system_tokens + arguments.said_tokens) // BLOCK_TOKENS
    few = prompt + arguments.said_tokens // BLOCK_TOKENS
    everything = prompt + (USERS + 1) * (TURNS * arguments.said_tokens + NEW_TOKENS * TURNS) // BLOCK_TOKENS
    sizes = [arguments.layers * BLOCK_BYTES_OF_LAYER * blocks * 9 // 8 for blocks in (few, everything, everything)]
    objects.mkdir()
    secret = objects.with_name("secret")
    secret.write_bytes(b"of the demo's cluster, no other!")
    secret.chmod(0o600)
    console.print(
        "Three nodes of one cluster, as on three machines: each has a data directory and memory of its own, and they\n"
        "reach each other by TCP alone. The prefill process is attached to node-1, the decode process to node-2;\n"
        f"node-3 is spare. Memory: {', '.join(f'{size >> 20} MiB' for size in sizes)}; no files; one bucket, which is a"
        " directory here.\n"
        f"{USERS} users are answered; a third one's prompt is prefilled, and then node-1 is killed and its memory and "
        "disk\nare deleted. The prefill process goes on at node-3, which has nothing.\n",
        highlight=False,
        soft_wrap=True,
    )
    addresses = free_addresses(len(sizes))
    nodes = stage.nodes(
        {f"node-{i}": str(size) for i, size in enumerate(sizes, 1)},
        addresses,
        f"cluster.members={','.join(addresses)}",
        f"cluster.secret_file={secret}",
        "cluster.settle_ms=500",
        "file.enabled=false",
        f"object.url=file://{objects}",
        "metrics.address=127.0.0.1:0",
    )
    for node in nodes:
        node.cut_off()
    _until(lambda: all(_states(node) == ["alive"] * 3 for node in nodes), "the nodes do not find each other")
    return nodes


def _attached(nodes: list[StagedNode]) -> Iterator[tuple[str, str]]:
    yield "prefill", nodes[0].address
    yield "decode", nodes[1].address


@dataclass(slots=True)
class Play:
    """prefill is attached to the first node, decode to the second."""

    nodes: list[StagedNode]
    prefill: Child
    decode: Child
    console: Console
    said: int

    def play(self, users: list[Conversation], late: Conversation) -> Act:
        late_ids = late.say(self.said)
        prefilled(late, late_ids, self.prefill, TIERS)
        before = [converse(talk, self.said, self.prefill, self.decode, TIERS) for talk in users]
        talks = [*users, late]
        laid = self._lay(talks)
        death = self._kill()
        left = self._lay(talks)
        self.prefill.ask(verb="attach", address=self.nodes[2].address)
        after = [converse(talk, self.said, self.prefill, self.decode, TIERS) for talk in users]
        again = prefilled(late, late_ids, self.prefill, TIERS, again=True)
        after.append(decoded(late, late_ids, again, self.decode, TIERS))
        self.console.print("Before: prefill at node-1, decode at node-2", style="bold")
        show(before, self.console)
        show_lay(death, laid, left, self.console)
        self.console.print("After: prefill at node-3, decode at node-2", style="bold")
        show(after, self.console)
        act = Act(before, after, laid, left, death)
        self.console.print(moved_told(act), highlight=False, soft_wrap=True)
        return act

    def _lay(self, talks: list[Conversation]) -> list[Lay]:
        """Where the decode process would take each prompt's blocks from."""
        said = [self.decode.ask(verb="where", ids=talk.tokens) for talk in talks]
        names = {node.facts["node"]: node.name for node in self.nodes} | {"memory": self.nodes[1].name}
        return [
            Lay(talk.user, one["blocks"], {names.get(place, place): count for place, count in one["places"].items()})
            for talk, one in zip(talks, said, strict=True)
        ]

    def _kill(self) -> Death:
        first, *others = self.nodes
        tcp, other = _served(first)
        packed = _packed(first)
        began = time.monotonic()
        size = first.destroy()
        _until(lambda: all("dead" in _states(node) for node in others), "node-1 is dead, and the others do not see it")
        return Death(first.child.process.pid, size, time.monotonic() - began, packed, tcp, other)


def _until(true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > until:
            raise SystemExit(otherwise)
        time.sleep(0.02)


def _asked(node: StagedNode, method: str, request: object) -> Any:
    connection = Connection(f"{node.address}{OPERATORS}")
    try:
        return getattr(connection.admin(), method)(request, timeout=CALL_S)
    finally:
        connection.close()


def _states(node: StagedNode) -> list[str]:
    """Of all that it knows of, itself first."""
    return [str(row["state"]) for row in admin_rows.nodes(_asked(node, "Nodes", admin.NodesRequest()))]


def _packed(node: StagedNode) -> int:
    """Blocks that it knows to lie in objects."""
    told = admin_rows.tiers(_asked(node, "Tiers", admin.TiersRequest()))
    return next(int(str(row["blocks"])) for row in told if row["tier"] == "object")


def _served(node: StagedNode) -> tuple[int, int]:
    """Bytes of its own that others read: by TCP, and by any other way."""
    url = next(one for one in node.facts["addresses"] if one.endswith("/metrics"))
    tcp = other = 0
    with urlopen(url, timeout=CALL_S) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("kvstore_transfer_bytes_total{") and 'direction="served"' in line:
                count = int(float(line.rsplit(" ", 1)[1]))
                tcp, other = (tcp + count, other) if 'path="tcp"' in line else (tcp, other + count)
    return tcp, other
