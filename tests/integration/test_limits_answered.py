"""Limits that a peer meets when it asks for more than there is: each has an answer, and the answer names it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import Client
from kvstore.errors import Rejected
from tests.integration.nodes import NodeProcess, layout
from tests.integration.test_door import CALL, HOLD, OK, Rig, chain, eventually, put

LEASE_MS_MAX = 60_000


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, trusted=True, queue_bytes_max=1 << 20)
    yield made
    made.stop()


@pytest.mark.parametrize(("asked", "given"), [(0, LEASE_MS_MAX), (1_500, 1_500), (0xFFFFFFFF, LEASE_MS_MAX)])
def test_a_lease_is_no_longer_than_the_node_gives(rig: Rig, asked: int, given: int) -> None:
    put(rig, rig.session(), 1)
    peer = rig.peer()
    assert rig.door.allow(peer.owner, rig.ns)
    peer.send(HOLD, struct.pack("<IHBBIIII", rig.ns, 0, 0, 0, 1, 0, asked, 0) + bytes(32) + chain(1).tobytes())
    verb, status, body = peer.answer()
    assert (verb, status) == (HOLD, OK)
    assert struct.unpack_from("<QII", body)[1:] == (given, 1)


def test_answers_that_nobody_takes_do_not_pile_up(rig: Rig) -> None:
    peer, other = rig.peer(), rig.session()
    peer.send(CALL, struct.pack("<II", 4, 0))
    requests = []
    eventually(lambda: bool(requests.extend(rig.door.take_requests(9)) or requests))
    assert rig.door.answer(peer.owner, requests[0].request, bytes(8 << 20))
    eventually(lambda: rig.door.stats()["cut_slow"] == 1)
    assert other.lookup(rig.ns, chain(1), [], 5.0).status == OK


def test_a_node_opens_so_many_namespaces_and_no_more(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, "limits.namespaces_max=2") as node, Client(node.address, deadline_s=20) as client:
        for model in ("a", "b", "a"):
            client.namespace(layout(model))
        with pytest.raises(Rejected, match="namespaces_max"):
            client.namespace(layout("c"))
        client.namespace(layout("b")).clear()
        client.namespace(layout("b"))
