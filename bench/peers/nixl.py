"""NIXL over UCX between two processes, reading scattered extents; `nixl_tcp` and `nixl_cma` choose UCX's way.

Both sides go without a progress thread, which does better on few cores; so the owner has to look after its agent while
a transfer is under way. A transfer's descriptors are prepared off the clock.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from bench.peers import two, work
from bench.peers.network import loopback_only
from bench.peers.serve import Works, serve

__all__ = ["main"]

LOOK_EVERY = 16  # turns of the owner, at whether it is still wanted


def agent_of(name: str) -> object:
    from nixl_cu12._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))


def registered(agent: object, memory: np.ndarray) -> object:
    return agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")


def own(pause_s: float) -> None:
    say = two.voice()
    agent, memory = agent_of("owner"), two.content()
    held = registered(agent, memory)
    say(metadata=agent.get_agent_metadata().hex(), address=memory.ctypes.data)
    while word := os.read(0, 1):
        while word == b"+" and not select.select([0], [], [], 0)[0]:
            for _ in range(LOOK_EVERY):
                agent.get_new_notifs()
                if pause_s:
                    time.sleep(pause_s)
    del held


@contextmanager
def peer(module: str, wanted: dict[str, tuple[int, int]]) -> Iterator[Works]:
    loopback_only()
    with two.owned(module) as owner:
        agent, target, source = agent_of("reader"), np.zeros(work.MOVED_BYTES, dtype=np.uint8), two.content()
        held = registered(agent, target)
        name = agent.add_remote_agent(bytes.fromhex(str(owner.about["metadata"])))
        there, here = int(str(owner.about["address"])), target.ctypes.data

        def read(offsets: Sequence[int], length: int) -> float:
            mine = agent.get_xfer_descs([(here + at, length, 0) for at in offsets], "DRAM")
            theirs = agent.get_xfer_descs([(there + at, length, 0) for at in offsets], "DRAM")
            handle = agent.initialize_xfer("READ", mine, theirs, name)
            owner.turn(True)
            start = time.perf_counter()
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            taken = time.perf_counter() - start
            owner.turn(False)
            agent.release_xfer_handle(handle)
            if state != "DONE":
                raise RuntimeError(f"a transfer ended as {state}")
            return taken

        yield two.works(wanted, read, source, target)
        agent.deregister_memory(held)


def main(module: str, ways: str, wanted: dict[str, tuple[int, int]], pause_s: float) -> None:
    os.environ["UCX_TLS"] = ways  # it reads it when it is loaded
    if sys.argv[1:] == ["owner"]:
        own(pause_s)
    else:
        serve(partial(peer, module, wanted))
