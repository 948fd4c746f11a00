"""What goes wrong in a simulation, and when: drawn from its seed before it begins."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.testing.models.client import ClientModel
from kvstore.testing.models.lifecycle import SlotState
from kvstore.testing.models.messages import Clear, Fill, Pull, Reserve, Seal, SealFilled

if TYPE_CHECKING:
    from kvstore.testing.simulation import Simulation

SPAN: Final = 16_000  # over which faults are spread: about as long as clients work
KEEPALIVE: Final = 4_000  # after which a node gives up a silent connection
KILLS: Final = ((object,), (Seal, SealFilled, Pull), (Seal, Reserve, Pull, Fill))  # the verbs to be killed in


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Times of each fault; `delay_max` of messages on the same host."""

    delay_max: int
    node_kills: tuple[int, ...]
    kills_in_verb: tuple[int, ...]
    client_kills: tuple[int, ...]
    stops: tuple[tuple[int, int], ...]  # when, for how long
    cuts: tuple[int, ...]
    silences: tuple[int, ...]
    jumps: tuple[tuple[int, int], ...]
    flips: tuple[int, ...]
    breaks: tuple[int, ...]  # of ways by which something moves
    hangups: tuple[int, ...]  # of connections for which something moves
    clears: tuple[int, ...]  # while something moves


def plan_faults(rng: random.Random) -> FaultPlan:
    """One seed in eight is calm; in the others each kind of fault comes up to a few times, or not at all."""
    calm = rng.random() < 0.125

    def times(most: int) -> tuple[int, ...]:
        count = 0 if calm or rng.random() < 0.5 else rng.randint(1, most)
        return tuple(rng.randint(1, SPAN) for _ in range(count))

    return FaultPlan(
        delay_max=rng.choice((20, 60, 400)),
        node_kills=times(2),
        kills_in_verb=times(3),
        client_kills=times(2),
        stops=tuple((at, rng.choice((200, 2_000, 4_000, 8_000))) for at in times(8)),
        cuts=times(2),
        silences=times(2),
        jumps=tuple((at, rng.choice((500, 5_000, 100_000))) for at in times(2)),
        flips=times(3),
        breaks=times(3),
        hangups=times(3),
        clears=times(2),
    )


class Storm:
    """Makes the plan happen."""

    def __init__(self, simulation: Simulation, plan: FaultPlan) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.plan = plan

    def begin(self) -> None:
        plan, at = self.plan, self.world.at
        for when in plan.node_kills:
            at(when, self._kill_node_in_use)
        for when in plan.kills_in_verb:
            at(when, self._kill_node_in_verb)
        for when in plan.client_kills:
            at(when, self._kill_client)
        for when, duration in plan.stops:
            at(when, self._stop_for(duration))
        for when in plan.cuts:
            at(when, self._cut)
        for when in plan.silences:
            at(when, self._silence)
        for when, by in plan.jumps:
            at(when, self._jump_by(by))
        for when in plan.flips:
            at(when, self._flip)
        for when in plan.breaks:
            at(when, lambda: self._when_moving(self._break))
        for when in plan.hangups:
            at(when, lambda: self._when_moving(self._hang_up))
        for when in plan.clears:
            at(when, lambda: self._when_moving(self._clear))

    def _a_client(self, *, local: bool | None = None) -> ClientModel | None:
        fit = [c for c in self.simulation.clients if c.process.running and (local is None or c.in_place == local)]
        return self.world.rng.choice(fit) if fit else None

    def _kill_node_in_use(self, tries: int = 20) -> None:
        """When somebody writes or looks at its memory, if that happens soon; half the time a writer is stopped then."""
        running = [client for client in self.simulation.clients if client.process.running]
        writers = [client for client in running if client.writing]
        if tries and not writers and not any(client.viewing for client in running):
            self.world.after(150, lambda: self._kill_node_in_use(tries - 1))
            return
        if writers and self.world.rng.random() < 0.5:
            self._stop(writers[0], self.world.rng.choice((1_000, 3_000, 6_000)))
        self._kill_node()

    def _kill_node(self) -> None:
        node = self.simulation.node
        if node is not None and node.alive:
            self.world.note("node", "killed")
            node.kill()
            self.world.after(self.world.rng.choice((50, 300, 3_000)), self.simulation.start_node)

    def _kill_node_in_verb(self) -> None:
        node = self.simulation.node
        if node is None or not node.alive or node.kill_within:
            return
        node.kill_within = self.world.rng.choice(KILLS)

        def follow_up() -> None:
            if node.alive:  # nobody called meanwhile
                node.kill_within = ()
            elif node is self.simulation.node:
                self.simulation.start_node()

        self.world.after(self.world.rng.randint(500, 3_000), follow_up)

    def _kill_client(self) -> None:
        client = self._a_client()
        if client is None:
            return
        self.world.note(client.name, "killed")
        client.process.kill()
        if client.link is not None:
            client.link.close()

    def _stop_for(self, duration: int) -> Callable[[], None]:
        def stop() -> None:
            writing = [client for client in self.simulation.clients if client.writing and client.process.running]
            client = self.world.rng.choice(writing) if writing else self._a_client()
            if client is not None:
                self._stop(client, duration)

        return stop

    def _stop(self, client: ClientModel, duration: int) -> None:
        self.world.note(client.name, f"stopped for {duration}")
        client.process.stop()
        self.world.after(duration, client.process.wake)

    def _cut(self) -> None:
        client, node = self._a_client(), self.simulation.node
        if client is None or client.link is None or node is None or not node.alive:
            return
        if client.link.owner in node.links:
            self.world.note("node", f"cuts {client.name} off")
            node.cut(client.link)

    def _silence(self) -> None:
        client = self._a_client(local=False)
        if client is None or client.link is None:
            return
        link, node = client.link, self.simulation.node
        self.world.note(client.name, "is unreachable")
        link.silent = True

        def give_up() -> None:
            if node is not None and not link.told:
                link.told = True
                node.gone(link)

        self.world.after(KEEPALIVE, give_up)

    def _jump_by(self, by: int) -> Callable[[], None]:
        def jump() -> None:
            self.world.note("clock", f"jumps by {by}")
            self.world.jump(by)

        return jump

    def _flip(self) -> None:
        """Rot, where nobody has been shown the bytes yet: a view's are its reader's to lose."""
        node = self.simulation.node
        if node is None or not node.alive:
            return
        fit = [slot for slot in node.table.slots.values() if slot.state == SlotState.SEALED and not slot.kept]
        if fit:
            slot = self.world.rng.choice(fit)
            at = slot.offset + self.world.rng.randrange(slot.payload_bytes)
            self.simulation.remains.memory.data[at] ^= 1 << self.world.rng.randrange(8)
            self.world.note("memory", f"rots at {at} (slot {slot.ticket.slot})")

    # ---- what meets bytes in motion

    def _when_moving(self, then: Callable[[ClientModel], None], tries: int = 40) -> None:
        """When bytes of some client move, if that happens soon."""
        clients = [c for c in self.simulation.clients if c.link is not None and c.link.way and c.link.way.readings]
        if clients:
            then(self.world.rng.choice(clients))
        elif tries:
            self.world.after(25, lambda: self._when_moving(then, tries - 1))

    def _break(self, client: ClientModel) -> None:
        assert client.link is not None and client.link.way is not None
        self.world.note(client.name, "loses what is in motion")
        client.link.way.break_down()

    def _hang_up(self, client: ClientModel) -> None:
        """By either end."""
        link, node = client.link, self.simulation.node
        assert link is not None
        if self.world.rng.random() < 0.5 and node is not None and node.alive and link.owner in node.links:
            self.world.note("node", f"cuts {client.name} off")
            node.cut(link)
        else:
            self.world.note(client.name, "loses its connection")
            link.close()

    def _clear(self, client: ClientModel) -> None:
        """An operator's."""
        node = self.simulation.node
        if node is None or not node.alive or client.link is None or not node.opened:
            return
        ns = self.world.rng.choice(list(node.opened))
        self.world.note("node", f"is told to clear {node.opened[ns].name}")
        node.handle(client.link, 0, Clear(ns))
