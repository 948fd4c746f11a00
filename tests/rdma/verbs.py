"""The least of a queue pair that READ and WRITE need, over pyverbs as it is: devices and harness are tested with it.
The store's own transport is not used here, so that a fault is found where it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import time
from collections.abc import Iterator
from typing import Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from tests.rdma.rails import Rail

try:
    from pyverbs import libibverbs_enums as ib  # since rdma-core 50
except ImportError:
    from pyverbs import enums as ib

ACCESS = ib.IBV_ACCESS_LOCAL_WRITE | ib.IBV_ACCESS_REMOTE_READ | ib.IBV_ACCESS_REMOTE_WRITE
READ, WRITE = ib.IBV_WR_RDMA_READ, ib.IBV_WR_RDMA_WRITE
# Other kinds of constants share the prefix, and so the numbers.
STATUSES = {
    getattr(ib, name): name.removeprefix("IBV_WC_")
    for name in dir(ib)
    if name.startswith("IBV_WC_") and name.endswith(("_SUCCESS", "_ERR"))
}
STATES = {getattr(ib, name): name.removeprefix("IBV_QPS_") for name in dir(ib) if name.startswith("IBV_QPS_")}


class End:
    """One end of a connection over a rail, with registered memory of its own (`content`)."""

    def __init__(
        self, rail: Rail, device: str, size: int, timeout: int = 14, retries: int = 6, depth: int = 64
    ) -> None:
        """A request fails when 4.096 us x 2^timeout x (retries + 1) passed without an answer. Soft-RoCE takes 7 retries
        to mean for ever.
        """
        self.rail, self.device, self.timeout, self.retries, self.depth = rail, device, timeout, retries, depth
        self.context = Context(name=device)
        self.domain = PD(self.context)
        self.memory = mmap.mmap(-1, size)
        self.content = memoryview(self.memory)
        self._address = ctypes.c_char.from_buffer(self.memory)
        self.region = MR(self.domain, size, ACCESS, address=ctypes.addressof(self._address))
        self.queue = CQ(self.context, 2 * depth)
        self.renew()

    def renew(self) -> None:
        """A queue pair in the place of one that failed."""
        if hasattr(self, "pair"):
            self.pair.close()
            while self.queue.poll(16)[0]:
                pass
        room = QPCap(max_send_wr=self.depth, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        self.pair = QP(self.domain, QPInitAttr(qp_type=ib.IBV_QPT_RC, scq=self.queue, rcq=self.queue, cap=room))
        self.first_packet = random.getrandbits(24)

    def card(self) -> dict[str, Any]:
        """What the other end must know."""
        return {
            "gid": self.rail.gid(self.device)[1],
            "pair": self.pair.qp_num,
            "packet": self.first_packet,
            "address": ctypes.addressof(self._address),
            "key": self.region.rkey,
        }

    def join(self, other: dict[str, Any]) -> None:
        attributes = QPAttr(port_num=1)
        attributes.qp_access_flags = ACCESS
        attributes.path_mtu = ib.IBV_MTU_4096
        attributes.dest_qp_num = other["pair"]
        attributes.rq_psn, attributes.sq_psn = other["packet"], self.first_packet
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 16
        attributes.min_rnr_timer, attributes.rnr_retry = 12, 6
        attributes.timeout, attributes.retry_cnt = self.timeout, self.retries
        index, _ = self.rail.gid(self.device)
        way = GlobalRoute(dgid=GID(other["gid"]), sgid_index=index, hop_limit=64)
        attributes.ah_attr = AHAttr(gr=way, is_global=1, port_num=1)
        self.pair.to_rts(attributes)
        self.other = other

    def post(self, opcode: int, offset: int, length: int, their_offset: int, number: int = 0, key: int = 0) -> None:
        """`key`: another than the one that the other end told."""
        extent = SGE(ctypes.addressof(self._address) + offset, length, self.region.lkey)
        request = SendWR(wr_id=number, opcode=opcode, num_sge=1, sg=[extent], send_flags=ib.IBV_SEND_SIGNALED)
        request.set_wr_rdma(key or self.other["key"], self.other["address"] + their_offset)
        self.pair.post_send(request)

    def completions(self, count: int, within_s: float) -> list[tuple[int, str]]:
        """(number, status) of the next `count` requests that ended; fewer when the time is over."""
        ended: list[tuple[int, str]] = []
        end = time.monotonic() + within_s
        while len(ended) < count and time.monotonic() < end:
            ended += [(each.wr_id, STATUSES[each.status]) for each in self.queue.poll(16)[1]]
        return ended

    def give_up(self) -> None:
        """Hands back every request at once."""
        self.pair.modify(QPAttr(qp_state=ib.IBV_QPS_ERR), ib.IBV_QP_STATE)

    def state(self) -> str:
        return STATES[self.pair.query(ib.IBV_QP_STATE)[0].qp_state]

    def close(self) -> None:
        for part in (self.pair, self.queue, self.region, self.domain, self.context):
            part.close()
        del self._address
        self.content.release()
        self.memory.close()


def join(near: End, far: End) -> None:
    near.join(far.card())
    far.join(near.card())


@contextlib.contextmanager
def both_ends(rail: Rail, size: int, timeout: int = 14, retries: int = 6) -> Iterator[tuple[End, End]]:
    """A connection with both its ends in this process."""
    near, far = (End(rail, device, size, timeout, retries) for device in (rail.near, rail.far))
    try:
        join(near, far)
        yield near, far
    finally:
        near.close()
        far.close()
