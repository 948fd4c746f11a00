"""A node that is asked for much at once by another is not dead for it: pings have room beside calls that wait."""

from __future__ import annotations

import asyncio
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvstore import native
from kvstore.config import LimitsConfig
from kvstore.directory.base import Member
from kvstore.errors import Rejected
from kvstore.node.auth import Guard
from kvstore.node.door import FramedDoor
from kvstore.node.peer_session import CALLS_MAX, PeerSession
from kvstore.node.tls import Certificates
from kvstore.security import SecurityConfig
from kvstore.wire import store

MEMORY = 16 << 20
CALLS = CALLS_MAX + 60
WAIT_S = 30.0


class Parking:
    """In place of the visitors: whatever they are asked waits for ever."""

    def came(self, connection: int) -> None: ...

    def gone(self, connection: int) -> None: ...

    async def call(self, *_: object) -> bytes:
        return await asyncio.get_running_loop().create_future()


async def test_pings_have_room_beside_calls_that_wait(tmp_path: Path) -> None:
    table = native.TableConfig(MEMORY, 1 << 20)
    meta = mmap.mmap(-1, native.NodeCore.meta_bytes(table))
    address = np.frombuffer(meta, np.uint8).ctypes.data
    core = native.NodeCore(table, None, meta=address, meta_bytes=len(meta), incarnation=5)
    payload = os.memfd_create("payload")
    os.ftruncate(payload, MEMORY)
    desk: Any = SimpleNamespace(
        call=lambda *_: b"pong", peer=lambda _: Member("", bytes(16)), gone=lambda _: None, knows=lambda _: False
    )
    security, path, parking = SecurityConfig(), tmp_path / "s", Parking()
    guard, certificates = Guard(security), Certificates(security)
    door = FramedDoor(security, guard, certificates, LimitsConfig(), core, path, "none", desk, b"of nodes")
    door.start(SimpleNamespace(), parking, SimpleNamespace(), payload, MEMORY)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor:
        session = PeerSession(await asyncio.to_thread(native.Session, str(path)))
        try:
            waiting = [session.begin(store.METHOD_PEER_FOLLOW, b"", WAIT_S) for _ in range(CALLS)]
            assert await session.call(store.METHOD_PEER_PING, b"", WAIT_S) == b"pong"
            refused = [call.exception() for call in waiting if call.done()]
            assert len(refused) == CALLS - CALLS_MAX
            assert {(type(error), getattr(error, "limit", "")) for error in refused} == {(Rejected, "peer_calls_max")}
            waiting[0].cancel()
            await asyncio.sleep(0)
            assert not session.begin(store.METHOD_PEER_FOLLOW, b"", WAIT_S).done()
        finally:
            session.close(executor)
            await door.stop()
            os.close(payload)
