"""Which of several nodes a call goes to, for a client that has none of its own.

All blocks of a family go to one node, the same from every client that knows the same addresses: the highest rendezvous
weight of (namespace, family). One that was found dead or silent stands last for a while, so its families go where they
would go without it, and come back. Nothing rests on it but speed: any node of a cluster gets what another one has.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np

from kvstore.client.steps import (
    Answer,
    Fetch,
    Follow,
    Hold,
    Keys,
    Look,
    Lookup,
    LookupFar,
    Put,
    Reopened,
    Replicate,
    Report,
    Reserve,
    Status,
    Step,
    Told,
)
from kvstore.wire import framed, store
from kvstore.wire.labels import label_id

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space

__all__ = ["AWAY_S", "Placement", "asked_by", "begun_by", "brief", "briefly", "family_of", "of_another_time"]

AWAY_S: Final = 2.0
OPEN_S: Final = 0.5  # for a node to be connected to, while there is another one to go to


class Placement:
    """Of one client. addresses: as they stand in the client's, each once; in what order says nothing."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._ids = [address.encode() for address in addresses]
        self._until = [0.0] * len(addresses)
        self._twins: WeakKeyDictionary[Space, dict[int, Space]] = WeakKeyDictionary()

    def order(self, thing: bytes) -> list[int]:
        """Nodes, the one to go to first. Those that are away stand behind the others."""
        now, thing = time.monotonic(), hashlib.sha256(thing).digest()
        weights = [hashlib.sha256(thing + one).digest() for one in self._ids]
        best = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
        return sorted(best, key=lambda i: max(0.0, self._until[i] - now))

    def away(self, i: int) -> None:
        self._until[i] = time.monotonic() + AWAY_S

    def judge(self, i: int, answer: Answer, left_s: float) -> bool:
        """Whether this answer is the step's: it is not if the node is gone and gave nothing, or knows another
        generation of the namespace, which others may not. One that is gone, or did not answer in time, is away.
        left_s: of the call's time; who was asked without any is not to blame.
        """
        if answer.status == Status.STALE_NAMESPACE:
            return False
        gone = answer.status == Status.UNAVAILABLE
        if answer.status == Status.LATE or (gone and left_s > 0):
            self.away(i)
        return not gone or answer.blocks > 0 or left_s <= 0

    def at(self, i: int, space: Space) -> Space:
        """The namespace as it is open at one node."""
        twins = self._twins.setdefault(space, {})
        twin = twins.get(i)
        if twin is None:
            twin = twins[i] = copy.copy(space)
            twin.placed = None
        if not twin.is_of(space):  # cleared meanwhile: nothing is asked of what was
            twin.placed = None
        return twin


def family_of(space: Space, step: Step) -> bytes:
    """What a step's node goes by."""
    if isinstance(step, Fetch | Hold | Put | Look | Follow | Reserve | Report) and step.hint.family:
        family = step.hint.family.to_bytes(8, "little")
    elif isinstance(step, LookupFar):
        family = _first(space.known.family_blocks, keys_in(store.LookupRequest.FromString(step.request).chain))
    elif isinstance(step, Replicate):  # of the node that has just been given these
        request = framed.ReplicateRequest.FromString(step.request)
        named = label_id(request.hints.family) if request.hints.family else request.hints.family_id
        keys = keys_in(request.chain)
        family = named.to_bytes(8, "little") if named else _first(space.known.family_blocks, keys)
    elif isinstance(step, Lookup | Fetch | Hold | Put | Look | Follow | Reserve):
        family = _first(space.known.family_blocks, step.keys)
    else:
        family = b""
    return space.known.digest + family


def begun_by(step: Step) -> object:
    """The connection by which a follow goes on: no other node knows of it. None: the step is anybody's."""
    return step.followed.line if isinstance(step, Follow) else None


def keys_in(chain: store.Chain) -> Keys:
    return np.frombuffer(chain.keys, np.uint8).reshape(-1, 32)


def _first(family_blocks: int, keys: Keys) -> bytes:
    """As hints.to_wire makes a chain's family."""
    return keys[min(family_blocks, len(keys)) - 1, :8].tobytes() if len(keys) else b""


def briefly(times: Times, others: int) -> Times:
    """For connecting to a node, where there are others to go to."""
    return times._replace(deadline=brief(times.deadline)) if others else times


def brief(deadline: float) -> float:
    return min(deadline, time.monotonic() + OPEN_S)


def asked_by(method: int, body: bytes, family_blocks: int) -> bytes:
    """As family_of, of a rare verb."""
    if method != store.METHOD_PREFETCH:
        return b""
    request = store.PrefetchRequest.FromString(body)
    return request.namespace + _first(family_blocks, keys_in(request.chain))


def of_another_time(space: Space, twin: Space, opened: Answer) -> Told | None:
    """What a step comes to at a node where the namespace was just opened, if it comes to nothing: that failed, or it
    was cleared, there or everywhere.
    """
    if not isinstance(opened, Reopened):
        return Told(opened.status, reason=opened.reason, field=opened.field)
    return Told(Status.STALE_NAMESPACE) if twin.known.digest != space.known.digest else None
