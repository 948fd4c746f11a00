"""Ways to nodes that hold what one's own has not, by their incarnations: made when they are first read from, and kept.

At most HOLDERS_MAX of them: of those that nobody reads by, the one used longest ago makes way. Who led nowhere is not
asked for again for AVOID_S; whose block did not verify, not for a run that begins with that block.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from kvstore.errors import Unavailable
from transfer.offers import OfferInvalid, parse_offer

if TYPE_CHECKING:
    from kvstore.wire import framed
    from transfer.offers import Offer
    from transfer.paths import Connection

__all__ = ["AVOID_S", "HOLDERS_MAX", "Holders", "read_within"]

HOLDERS_MAX: Final = 64
AVOID_S: Final = 2.0  # the client's node has found out by then whether it lives
AVOIDED_MAX: Final = 256
REACH_S: Final = 1.0
READ_S: Final = 1.0  # of one read, and what its bytes take at READ_BYTES_PER_S: then it is slow, or gone
READ_BYTES_PER_S: Final = 64 << 20

Connect = Callable[["Offer", float], Awaitable["Connection"]]


def read_within(moved: int, left_s: float) -> float:
    """Seconds that so many bytes of a holder may take."""
    return max(0.001, min(left_s, READ_S + moved / READ_BYTES_PER_S))


class Holders:
    """On the event loop of the transports; `avoided` of any thread. connect: raises Unavailable."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._known: OrderedDict[int, Connection] = OrderedDict()
        self._turns: dict[int, asyncio.Lock] = {}
        self._comers: Counter[int] = Counter()  # who has, or waits for, the turn of each
        self._readers: Counter[int] = Counter()
        self._avoided: dict[tuple[int, bytes], float] = {}  # (incarnation, key; b"": all), until when

    async def reach(self, incarnation: int, offer: bytes, deadline_s: float) -> Connection:
        """Raises Unavailable, saying of each way why not."""
        until = time.monotonic() + deadline_s
        self._comers[incarnation] += 1
        try:
            async with asyncio.timeout(deadline_s), self._turns.setdefault(incarnation, asyncio.Lock()):
                known = self._known.get(incarnation)
                if known is None:
                    known = await self._connect(parse_offer(offer), max(0.001, until - time.monotonic()))
                    self._known[incarnation] = known
                self._known.move_to_end(incarnation)
        except OfferInvalid as error:
            raise Unavailable(f"the holder's offer does not parse: {error}") from error
        except TimeoutError:
            raise Unavailable(f"the holder was not reached within {deadline_s:.3g} s") from None
        finally:
            self._comers[incarnation] -= 1
            if not self._comers[incarnation]:
                del self._comers[incarnation]
                self._turns.pop(incarnation, None)
        await self._make_way(incarnation)
        return known

    async def granted(
        self, incarnation: int, offer: bytes, grants: Iterable[framed.LeaseGrant], left_s: float
    ) -> tuple[Connection, int, bytes]:
        """The way to a holder, its carrier, and what it grants by that. Raises Unavailable, as `reach`."""
        way = await self.reach(incarnation, offer, min(REACH_S, max(0.001, left_s)))
        carrier = int(way.chosen.path.carrier)
        for grant in grants:
            if grant.carrier == carrier:
                return way, carrier, grant.descriptor
        raise Unavailable(f"the holder grants nothing by carrier {carrier}")

    async def _make_way(self, but: int) -> None:
        for one in tuple(self._known):
            if len(self._known) <= HOLDERS_MAX:
                return
            if one != but and not self._readers[one]:
                await self._known.pop(one).close()

    @contextlib.contextmanager
    def reading(self, incarnation: int) -> Iterator[None]:
        """It does not make way meanwhile."""
        self._readers[incarnation] += 1
        try:
            yield
        finally:
            self._readers[incarnation] -= 1
            if not self._readers[incarnation]:
                del self._readers[incarnation]

    def lost(self, way: Connection) -> bool:
        """Whether it was one of these: it is none any more, and the caller closes it."""
        for incarnation, known in self._known.items():
            if known is way:
                del self._known[incarnation]
                return True
        return False

    def avoid(self, incarnation: int, key: bytes = b"") -> None:
        """key: of a block that it has wrong; none: it was not to be read from at all."""
        now = time.monotonic()
        kept = {one: until for one, until in self._avoided.items() if until > now and one != (incarnation, key)}
        while len(kept) >= AVOIDED_MAX:
            del kept[next(iter(kept))]
        self._avoided = kept | {(incarnation, key): now + AVOID_S}

    def avoided(self, first: bytes) -> list[int]:
        """Incarnations, for a run that begins with this key."""
        now = time.monotonic()
        return [one for (one, key), until in self._avoided.items() if until > now and key in {b"", first}]

    def close(self) -> list[Connection]:
        """All of them, for the caller to close."""
        known, self._known = list(self._known.values()), OrderedDict()
        return known
