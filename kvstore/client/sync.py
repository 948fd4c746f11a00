"""The sync face: each call blocks its thread, with the GIL given back. Any number of threads may share one client."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from kvstore.client.calls import Times, positive, times_of
from kvstore.client.channel import Channel, connect
from kvstore.client.face import DEADLINE_S, ClientFace, NamespaceFace
from kvstore.client.follows import Follow
from kvstore.client.held import Held
from kvstore.client.hints import NO_HINTS, Hints
from kvstore.client.journeys import Found, Got, Journey, Stored
from kvstore.client.slots import Slots
from kvstore.client.space import Choices, Cleared, Space, parent_of
from kvstore.client.steps import Limits
from kvstore.client.views import View
from kvstore.layout import KVLayout, Need
from kvstore.security import DEFAULT_TENANT
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore.client.tls import Tls
    from kvstore.config import TransferConfig

T = TypeVar("T")


class Client(ClientFace):
    """A node's client. Connects with the first call that needs it, and again after the node was restarted.

    address: "unix:PATH", or "host:port": then bytes move by transfers, and views are refused. "host:port,host:port",
    of nodes of one cluster: the blocks of a prompt are put at one of them, the same from every such client, and got
    from there; while it is away, at the next. token: for a node that
    asks for one. tls: over host:port. transfers: how bytes move by transfers (lanes, threads, devices); a client
    listens nowhere, whatever its addresses say. deadline_s: of every call that is not given its own. verify: off only
    to show why it is on. Raises nothing but ValueError, TypeError and Misconfigured before it is used.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        transfers: TransferConfig | None = None,
        deadline_s: float = DEADLINE_S,
        verify: bool = True,
    ) -> None:
        super().__init__(deadline_s)
        self._channel = connect(address, token, tls, transfers, verify=verify)

    def namespace(self, layout: KVLayout, *, tenant: str = DEFAULT_TENANT) -> Namespace:
        """Opens the namespace of this layout. Raises Unavailable without a node: the node makes its seed."""
        space = Space(layout, tenant, self._registry)
        self._channel.check()
        self._channel.open(space, times_of(self._deadline_s, None))
        return Namespace(self._channel, space, self._deadline_s)

    def close(self) -> None:
        """Waits for copies under way; calls in flight end Unavailable. Arrays of views stay readable."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Namespace(NamespaceFace):
    """Blocks of one layout and tenant. Thread-safe.

    What verbs share: `chain` is what chain() gives, or a slice of it. `shard`: of which rank's bytes it speaks.
    `parent`, `position`: for a chain cut out of the middle, the key before its first block and how many blocks come
    before it. `hints`: shift the order in which blocks leave. `deadline_s`: how long the call may take.

    Buffers may lie on CUDA devices. Work that still writes a source, or uses a destination, must be over before the
    call, or be queued on the stream that the array itself names then (`__cuda_array_interface__`, version 3, as cupy's;
    not torch's, and not DLPack): that one is waited for. After the call nothing copies to or from the memory any more;
    where that cannot be made sure of, Poisoned is raised, and the memory must be neither reused nor freed. ValueError
    names the argument where this process cannot move device memory (no cupy, no driver, ways that are not allowed).
    """

    def __init__(self, channel: Channel, space: Space, deadline_s: float) -> None:
        super().__init__(space, deadline_s)
        self._channel = channel

    def lookup(self, chain: object, needs: Sequence[Need] | None = None, *, deadline_s: float | None = None) -> Found:
        """The longest boundary at which every need holds; none: all of shard 0. Changes and touches nothing."""
        times, limits = self._ready(deadline_s, None)
        return self._drive(self._space.lookup(limits, chain, needs), times)

    def put(
        self,
        chain: object,
        source: object,
        *,
        shard: int = 0,
        metas: Sequence[bytes] | None = None,
        parent: object = None,
        position: int = 0,
        hints: Hints | None = None,
        replicas: int = 1,
        deadline_s: float | None = None,
    ) -> Stored:
        """Publishes blocks. What is held already is not copied; nothing ever waits for room. metas: up to 1 KiB a
        block, kept beside it and told in events. replicas: on so many hosts the blocks are to be sealed before this
        returns, the node's own among them; fewer is an answer (`Stored.replicas`), not an error.
        """
        times, limits = self._ready(deadline_s, None)
        choices = Choices(shard, hints or NO_HINTS, parent_of(parent), position, replicas)
        return self._drive(self._space.put(limits, chain, source, metas, choices, times), times)

    def get(
        self,
        chain: object,
        into: object,
        *,
        shard: int = 0,
        parts: range | tuple[int, int] | None = None,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Got:
        """Fetches the contiguous prefix that is there, verified as it lands. Beyond what arrived, `into` may have been
        written to. wait_s: how long the node may wait for blocks to come up from lower tiers; 0: take what is up.
        parts: first and end of those wanted of each block (usually layers), each verified by itself; `into` has room
        for these alone. Blocks are counted as hits with part 0.
        """
        times, limits = self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        return self._drive(self._space.get(limits, chain, into, choices, parts), times)

    def hold(
        self,
        chain: object,
        *,
        shard: int = 0,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Held:
        """Keeps the contiguous prefix that is up, or comes up within wait_s, in the node's memory, so that a get of it,
        by anybody, finds it: no copy, no check. At most `held_bytes_max` of a connection. It is no hit.
        """
        times, limits = self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        return self._drive(self._space.hold(limits, chain, choices), times)

    def view(
        self,
        chain: object,
        *,
        shard: int = 0,
        follow: bool = False,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> View:
        """As get, without a copy: arrays in the node's memory. At most one window (`window_bytes`) at a time.
        follow: go on into blocks that somebody is publishing; `view.parts` says how much of each is there.
        """
        times, limits = self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        lent = self._drive(self._space.view(limits, chain, follow, choices), times)
        return View(lent, self._space.block_tokens)

    def follow(
        self,
        chain: object,
        into: object,
        *,
        shard: int = 0,
        position: int = 0,
        hints: Hints | None = None,
        wait_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Follow:
        """Fetches blocks while somebody still publishes them (`reserve`), here or at another node, at most one window
        (`window_bytes`) of them: `for part in ns.follow(...)` goes on as each part has arrived of every block, and
        `.finish()` gives the result. It may begin before the publisher does. Parts are verified as they land; that
        their blocks are any good only the result says: those that were sealed. It ends within `deadline_s`.
        """
        times, limits = self._ready(deadline_s, wait_s)
        choices = Choices(shard, hints or NO_HINTS, position=position)
        journey = self._space.follow(limits, chain, into, choices)
        return Follow(journey, partial(self._channel.perform, self._space), times)

    def reserve(
        self,
        chain: object,
        *,
        shard: int = 0,
        metas: Sequence[bytes] | None = None,
        parent: object = None,
        position: int = 0,
        hints: Hints | None = None,
        deadline_s: float | None = None,
    ) -> Slots:
        """Takes slots to be filled part by part, at most one window (`window_bytes`) of them. `deadline_s` bounds all
        that is done with them, as the node's `reserve_lapse_ms` does.
        """
        times, limits = self._ready(deadline_s, None)
        choices = Choices(shard, hints or NO_HINTS, parent_of(parent), position)
        return Slots(self._drive(self._space.reserve(limits, chain, metas, choices), times), times)

    def prefetch(
        self, chain: object, *, hints: Hints | None = None, shards: Sequence[int] = (), deadline_s: float | None = None
    ) -> int:
        """Asks that blocks be in memory soon; answers at once how many are on some tier of the node."""
        times, _ = self._ready(deadline_s, None)
        request = self._space.prefetching(chain, shards, hints or NO_HINTS)
        body = self._channel.call(store.METHOD_PREFETCH, request, times)
        return store.PrefetchResponse.FromString(body).blocks

    def clear(self, *, deadline_s: float | None = None) -> Cleared:
        """Makes every block unreachable at once, for all clients of this node and of all that live; one that is away
        learns it before it serves again. Chains must be made anew.
        """
        times, _ = self._ready(deadline_s, None)
        request = store.ClearRequest(namespace=self.digest)
        body = self._channel.call(store.METHOD_CLEAR, request.SerializeToString(), times)
        self._channel.open(self._space, times)
        return Cleared.of(store.ClearResponse.FromString(body))

    # ---- driving ----------------------------------------------------------------------------------------------------

    def _ready(self, deadline_s: float | None, wait_s: float | None) -> tuple[Times, Limits]:
        times = times_of(self._deadline_s if deadline_s is None else positive("deadline_s", deadline_s), wait_s)
        return times, self._channel.limits(times.deadline)

    def _drive(self, journey: Journey[T], times: Times) -> T:
        perform, space = self._channel.perform, self._space
        try:
            step = next(journey)
            while True:
                step = journey.send(perform(space, step, times))
        except StopIteration as stop:
            result: T = stop.value
            return result
