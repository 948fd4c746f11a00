"""A node that stops calls nobody any more, and says so."""

from __future__ import annotations

import pytest

from kvstore.directory.base import Member
from kvstore.errors import Unavailable
from kvstore.node.introduction import Introduction
from kvstore.node.peers import Peers


async def test_who_calls_after_the_end_finds_nobody() -> None:
    me = Member("127.0.0.1:1", id=bytes(16))
    peers = Peers(
        Introduction(bytes(32), {}),
        me=lambda: me,
        tls=lambda: None,
        mutual=False,
        insecure=False,
        token=b"",
        secret_id="",
    )
    await peers.close()
    with pytest.raises(Unavailable, match="this node stops"):
        await peers.greet("127.0.0.1:2", 1.0)
