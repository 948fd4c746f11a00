"""Two nodes that were cleared as often, but not by the same clears, have one digest for other blocks: none is lent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.directory.generations import Clears, Generations
from kvstore.node.namespaces import Namespaces
from kvstore.node.visitors import Visitors
from kvstore.wire import framed

A, B = b"a" * 16, b"b" * 16
NS = b"n" * 32


class Holder:
    """A node that has what is asked for, and knows of `clears`."""

    def __init__(self, clears: Clears) -> None:
        namespaces: Any = SimpleNamespace(generations=Generations({NS: clears}))
        opened: Any = SimpleNamespace(origin=NS, shards=[object()])
        host = SimpleNamespace(
            namespaces=SimpleNamespace(clears_word=lambda one: Namespaces.clears_word(namespaces, one))
        )
        handlers: Any = SimpleNamespace(opened=lambda *_: opened, prefix=lambda *_: None, host=host)
        lender: Any = SimpleNamespace(cluster=SimpleNamespace(serves=lambda: True), counts=SimpleNamespace())
        moving: Any = None
        replicas: Any = None
        self.visitors = Visitors(moving, handlers, lender, replicas)

    async def lent(self, known: Clears) -> int:
        async def lease(*_: object) -> framed.LeaseResponse:
            return framed.LeaseResponse(offsets=[0])

        visitor: Any = SimpleNamespace(leases=SimpleNamespace(lease=lease))
        peer: Any = None
        request = framed.LeaseRequest(namespace=b"d" * 32, clears=known.word).SerializeToString()
        return len((await self.visitors._for_node(visitor, peer, request, A)).offsets)


@pytest.mark.parametrize(
    ("known", "blocks"),
    [(Clears(0, ((A, 1),)), 1), (Clears(0, ((B, 1),)), 0), (Clears(1), 0), (Clears(), 0)],
)
async def test_who_knows_of_other_clears_is_lent_nothing(known: Clears, blocks: int) -> None:
    assert await Holder(Clears(0, ((A, 1),))).lent(known) == blocks


async def test_what_was_never_cleared_is_lent() -> None:
    assert await Holder(Clears()).lent(Clears()) == 1
