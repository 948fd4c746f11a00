"""What the second part says and decides: where blocks lay, what died, what that cost."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from .report import Row, table, verdict

__all__ = ["FAR", "OBJECTS", "OWN", "Act", "Death", "Lay", "cluster_verdict", "moved_told", "show_lay"]

OWN, FAR, OBJECTS = "own memory", "another's", "objects"


@dataclass(frozen=True, slots=True)
class Lay:
    """Of one user's prompt and answers: how many whole blocks would be taken from which node, or from objects."""

    user: int
    blocks: int
    places: dict[str, int]

    @property
    def nowhere(self) -> int:
        return self.blocks - sum(self.places.values())


@dataclass(frozen=True, slots=True)
class Death:
    """noticed_s: from the kill until both others said so. packed: blocks that it had written to objects. tcp, other:
    bytes that others had read from it, by TCP and by any other way.
    """

    pid: int
    bytes_deleted: int
    noticed_s: float
    packed: int
    tcp: int
    other: int


@dataclass(frozen=True, slots=True)
class Act:
    """before, after: turns, on both sides of the death. laid, left: where blocks were, right before and right after."""

    before: list[Row]
    after: list[Row]
    laid: list[Lay]
    left: list[Lay]
    death: Death


def show_lay(death: Death, laid: list[Lay], left: list[Lay], console: Console) -> None:
    console.print("Where the decode process would take the blocks of each prompt and answer from", style="bold")
    places = sorted({place for lay in (*laid, *left) for place in lay.places})
    shown = table(["user", "", *places, "nowhere"])
    for one, other in zip(laid, left, strict=True):
        for when, lay in (("before", one), ("after", other)):
            counts = (lay.places.get(place, 0) for place in places)
            shown.add_row(str(lay.user), when, *map(str, counts), str(lay.nowhere))
    console.print(shown)
    console.print(
        f"\nIn between: kill -9 of node-1 (pid {death.pid}), and its shared memory and data directory deleted, "
        f"{death.bytes_deleted >> 20} MiB;\nthe other two knew it after {death.noticed_s * 1e3:.0f} ms. It had written "
        f"{death.packed} blocks to objects by then.\n",
        highlight=False,
        soft_wrap=True,
    )


def moved_told(act: Act) -> str:
    """What crossed from node to node, in words."""
    far = sum(row.tiers[FAR] for row in act.before)
    saved = sum(row.prefill_tiers[FAR] + row.prefill_tiers[OBJECTS] for row in act.after)
    return (
        f"before: {far} blocks went from node-1 to the decode process, {act.death.tcp >> 20} MiB by TCP, "
        f"{act.death.other >> 20} MiB otherwise.\n"
        f"after:  {saved} blocks came to the prefill process from node-2's replicas and from objects, instead of "
        "being computed again.\n"
    )


def cluster_verdict(act: Act) -> list[str]:
    """What went wrong, in words; empty when nothing did."""
    wrong = verdict([*act.before, *act.after])
    wrong += [
        f"user {row.user} turn {row.turn}: nothing came to decode from another node"
        for row in act.before
        if not row.tiers[FAR]
    ]
    if not act.death.tcp or act.death.other:
        wrong.append(
            f"{act.death.tcp} bytes left node-1 by TCP and {act.death.other} otherwise: must be some, and none"
        )
    wrong += [
        f"user {lay.user}: node-1 is dead and said to have blocks" for lay in act.left if lay.places.get("node-1")
    ]
    wrong += [
        f"user {row.user} turn {row.turn}: the death of node-1 cost all that was computed"
        for row in act.after
        if not sum(row.prefill_tiers.values())
    ]
    if not sum(row.prefill_tiers[FAR] for row in act.after):
        wrong.append("nothing came from replicas of what node-1 had")
    if not sum(row.prefill_tiers[OBJECTS] for row in act.after):
        wrong.append("nothing came from objects of what node-1 alone had")
    return wrong
