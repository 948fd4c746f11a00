"""One-sided reads of the simulation: memory that its owner grants, and peers that read it slice by slice.

Rules
- The owner's side looks at the grant when a slice begins. What has begun is promised: it is delivered, whatever becomes
  of the grant. Slices are late, lost and out of order; a lost one is asked for again a few times.
- By WORKERS (as tcp): what is promised when a grant is revoked is copied aside, and memory is quiet at once; a reading
  that is stopped discards what still comes. A process that is stopped neither serves nor receives.
- By NIC (as rdma): what is promised reads what lies there until it is done, and revoking waits for it; what is out when
  a reading is stopped may land for a while, and the reading waits for that. Stopped processes serve and receive.
- A reading answers once, when nothing of it can land any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, Protocol

from kvstore.testing.world import World

SLICE: Final = 20  # bytes
DELAY_MAX: Final = 120
SERVE_MAX: Final = 60  # how long a slice is under way at its owner
RESEND: Final = 150  # after which a slice that was lost is missed
TRIES_MAX: Final = 3
LINGER: Final = 120  # how long what is out at a stop may still land, by NIC
LOSS: Final = 0.02


class Carrier(Enum):
    WORKERS = "workers"
    NIC = "nic"


class Party(Protocol):
    """A process that lends memory or reads."""

    @property
    def running(self) -> bool: ...

    def deliver(self, call: Callable[[], None]) -> None:
        """Runs it in the process: now, or when it goes on after a stop; never once it has ended."""
        ...


@dataclass(slots=True, eq=False)
class Way:
    """Between one client and its node, apart from their connection: one may break without the other."""

    world: World
    carrier: Carrier
    unreachable: Callable[[], bool]
    readings: list[Reading] = field(default_factory=list)

    @property
    def delay(self) -> int:
        return self.world.rng.randint(1, DELAY_MAX)

    def loses(self) -> bool:
        return self.unreachable() or self.world.rng.random() < LOSS

    def break_down(self) -> None:
        """All that is out is lost; half the time for good."""
        for_good = self.world.rng.random() < 0.5
        for reading in list(self.readings):
            reading.lose_all(for_good=for_good)


@dataclass(slots=True, eq=False)
class Slice:
    row: int
    at: int  # in the row
    offset: int
    size: int
    tries: int = 0
    aside: bytes | None = None  # what was promised, once its grant was revoked


@dataclass(slots=True, eq=False)
class Grant:
    """The right to read ranges of memory, until a time or until it is revoked."""

    lender: Lender
    carrier: Carrier
    source: Callable[[int, int], bytes]
    ranges: tuple[tuple[int, int], ...]
    until: int
    ended: bool = False
    promised: dict[Slice, int] = field(default_factory=dict)  # the try
    quiet: list[Callable[[], None]] = field(default_factory=list)

    def opens(self, piece: Slice, now: int) -> bool:
        fits = any(at <= piece.offset and piece.offset + piece.size <= at + size for at, size in self.ranges)
        return fits and not self.ended and now < self.until

    def done(self, piece: Slice) -> None:
        del self.promised[piece]
        if not self.promised:
            told, self.quiet = self.quiet, []
            for tell in told:
                tell()


class Lender:
    """The memory side of one process."""

    def __init__(self, world: World, party: Party) -> None:
        self.world = world
        self.party = party
        self.refused = 0

    def grant(
        self, carrier: Carrier, source: Callable[[int, int], bytes], ranges: Sequence[tuple[int, int]], lifetime: int
    ) -> Grant:
        return Grant(self, carrier, source, tuple(ranges), self.world.now + lifetime)

    def revoke(self, grant: Grant, quiet: Callable[[], None]) -> None:
        """`quiet`: called when no peer touches the memory any more."""
        grant.ended = True
        if grant.carrier == Carrier.WORKERS:
            for piece in grant.promised:
                if piece.aside is None:
                    piece.aside = grant.source(piece.offset, piece.size)
        elif grant.promised:
            grant.quiet.append(quiet)
            return
        quiet()

    def by(self, carrier: Carrier, call: Callable[[], None]) -> None:
        """What serves: threads of the process, or its hardware."""
        if carrier == Carrier.WORKERS:
            self.party.deliver(call)
        elif self.party.running:
            call()


class Landed(NamedTuple):
    """Of each row: its bytes as they landed, or None where not all of them did."""

    rows: tuple[bytes | None, ...]
    failure: str


class Reading:
    """Reads rows (offset, size) of granted memory. land: told each slice's row, place in the row, and bytes."""

    def __init__(
        self,
        way: Way,
        reader: Party,
        grant: Grant,
        rows: Sequence[tuple[int, int]],
        land: Callable[[int, int, bytes], None],
        deadline: int,
        done: Callable[[Landed], None],
    ) -> None:
        self.way = way
        self.world = way.world
        self.reader = reader
        self.grant = grant
        self.land = land
        self.done = done
        self.rows = [bytearray(size) for _, size in rows]
        self.missing = [size for _, size in rows]
        self.failure = ""
        self.stopped = self.over = False
        cut = [
            Slice(row, at, offset + at, min(SLICE, size - at))
            for row, (offset, size) in enumerate(rows)
            for at in range(0, size, SLICE)
        ]
        self.out: dict[Slice, None] = dict.fromkeys(cut)
        way.readings.append(self)
        for piece in cut:
            self._ask(piece)
        self.world.at(max(deadline, self.world.now), lambda: reader.deliver(lambda: self.stop("late")))

    def stop(self, why: str) -> None:
        """Asks for no more. The answer comes when what is out can land no more."""
        if self.stopped or self.over:
            return
        self.stopped, self.failure = True, why
        if self.way.carrier == Carrier.WORKERS:
            self._end()
        else:
            self.world.after(LINGER, lambda: self.reader.deliver(self._end))

    def lose_all(self, *, for_good: bool) -> None:
        if for_good:
            self.reader.deliver(lambda: self.stop("broken"))
        for piece in list(self.out):
            self._miss(piece)

    # ---- a slice

    def _ask(self, piece: Slice) -> None:
        piece.tries += 1
        this = piece.tries
        if self.way.loses():
            self._miss(piece)
        else:
            self.world.after(self.way.delay, lambda: self._at_owner(piece, this))

    def _miss(self, piece: Slice) -> None:
        """It is lost, and found out in time."""
        this = piece.tries = piece.tries + 1

        def missed() -> None:
            if piece.tries != this or self.over or self.stopped:
                return
            if this >= 2 * TRIES_MAX:  # asking counts, and so does losing
                self.stop("lost")
            else:
                self._ask(piece)

        self.world.after(RESEND, lambda: self.reader.deliver(missed))

    def _at_owner(self, piece: Slice, this: int) -> None:
        if not self.grant.lender.party.running:
            self._back(piece, this, None)
        else:
            self.grant.lender.by(self.way.carrier, lambda: self._begin(piece, this))

    def _begin(self, piece: Slice, this: int) -> None:
        lender = self.grant.lender
        if piece in self.grant.promised:  # by a try that was lost: it ends first
            self.world.after(SERVE_MAX, lambda: self._at_owner(piece, this))
        elif not self.grant.opens(piece, self.world.now):
            lender.refused += 1
            self._back(piece, this, None)
        else:
            self.grant.promised[piece] = this
            piece.aside = None
            serving = self.world.rng.randint(1, SERVE_MAX)
            self.world.after(serving, lambda: lender.by(self.way.carrier, lambda: self._serve(piece, this)))

    def _serve(self, piece: Slice, this: int) -> None:
        data = piece.aside if piece.aside is not None else self.grant.source(piece.offset, piece.size)
        self.grant.done(piece)
        self._back(piece, this, data)

    def _back(self, piece: Slice, this: int, data: bytes | None) -> None:
        if self.over or piece.tries != this:
            return
        if self.way.loses():
            self._miss(piece)
            return

        def arrive() -> None:
            if self.way.carrier == Carrier.WORKERS:
                self.reader.deliver(lambda: self._arrive(piece, this, data))
            elif self.reader.running:
                self._arrive(piece, this, data)

        self.world.after(self.way.delay, arrive)

    def _arrive(self, piece: Slice, this: int, data: bytes | None) -> None:
        if self.over or piece.tries != this:
            return
        del self.out[piece]
        if data is None:
            self.reader.deliver(lambda: self.stop("refused"))
            return
        self.land(piece.row, piece.at, data)
        self.rows[piece.row][piece.at : piece.at + piece.size] = data
        self.missing[piece.row] -= piece.size
        if not self.out:
            self.reader.deliver(self._end)

    def _end(self) -> None:
        if self.over:
            return
        self.over = True
        self.way.readings.remove(self)
        rows = zip(self.rows, self.missing, strict=True)
        self.done(Landed(tuple(None if missing else bytes(row) for row, missing in rows), self.failure))
