"""`kvstore doctor --peer`: by which way bytes go from a node to this process, and why no faster one is used.

It asks the node for its offer, decides as every peer would, really connects, and reads the random bytes that the node
grants for that. A path that looks right and moves nothing, or wrong bytes, is told as such.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.message import DecodeError

from kvstore.allowed import human
from kvstore.client.address import parse
from kvstore.client.calls import times_of
from kvstore.client.socket import SocketChannel
from kvstore.config import transfer_of
from kvstore.errors import KvStoreError, Misconfigured
from kvstore.transfers import Transfers
from kvstore.wire import store
from transfer.base import Batch, Extent
from transfer.errors import TransferFault
from transfer.offers import Home, home_of, parse_offer

if TYPE_CHECKING:
    from kvstore.client.tls import Tls
    from kvstore.config import Config
    from transfer.paths import Connection as PathConnection

__all__ = ["Look", "look", "reach", "told"]

CALL_S: Final = 5.0
CONNECT_S: Final = 5.0
READ_S: Final = 5.0
PROBE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """`fault`: what kept bytes from moving; "": `moved_bytes` came over `path`, and were right."""

    peer: str
    home: str = ""
    path: str = ""
    address: str = ""
    not_faster: dict[str, str] = field(default_factory=dict)
    connect_ms: float = 0.0
    moved_bytes: int = 0
    move_ms: float = 0.0
    fault: str = ""

    @property
    def well(self) -> bool:
        return bool(self.path) and not self.fault


def look(peer: str, token: str | None, tls: Tls | None, config: Config) -> Look:
    """As a client with this token and these files. Raises Misconfigured for an address that is none, and for settings
    with which nothing can be tried.
    """
    try:
        at = parse(peer)
    except ValueError as error:
        raise Misconfigured(f"--peer {peer}: must be unix:PATH or HOST:PORT of a node's framed door") from error
    transfer = transfer_of(config)
    if tls is not None:
        transfer = replace(transfer, certificate=tls.certificate, private_key=tls.private_key, peer_ca=tls.authority)
    channel = SocketChannel(at, token, tls, transfer, verify=True, workers=1)
    try:
        body = channel.call(store.METHOD_OFFER, b"", times_of(CALL_S, None))
        answer = store.OfferResponse.FromString(body)
    except (KvStoreError, ValueError, DecodeError) as error:
        return Look(peer, fault=f"the node does not tell its offer: {error}")
    finally:
        channel.close()
    return asyncio.run(reach(peer, answer, replace(config, transfer=transfer)))


async def reach(peer: str, answer: store.OfferResponse, config: Config) -> Look:
    """Decides, connects, and moves the probe's bytes. Raises Misconfigured."""
    trusted = {os.getuid(), *config.security.trusted_uids}
    transfers = Transfers(transfer_of(config), trusted_uids=trusted, now_ns=time.monotonic_ns, listens=False)
    found = Look(peer)
    try:
        await transfers.start()
        there = parse_offer(answer.offer)
        found = replace(found, home=where(there.home, home_of()))
        began = time.perf_counter()
        connected = await transfers.connector.connect(there, deadline_s=CONNECT_S)
        found = replace(
            found,
            path=connected.chosen.path.value,
            address=connected.chosen.address,
            not_faster={path.value: why for path, why in connected.chosen.reasons},
            connect_ms=_ms_since(began),
        )
        moved_bytes, move_ms = await _moved(connected, answer)
        found = replace(found, moved_bytes=moved_bytes, move_ms=move_ms)
    except (TransferFault, ValueError) as error:
        found = replace(found, fault=str(error) or type(error).__name__)
    finally:
        await transfers.close()
    return found


async def _moved(connected: PathConnection, answer: store.OfferResponse) -> tuple[int, float]:
    """How many bytes came and how long that took. Raises ValueError where they are not what the node said."""
    carrier = connected.chosen.path.carrier
    probe = next((one for one in answer.probes if one.carrier == carrier), None)
    if probe is None:
        raise ValueError("connected; the node grants no bytes to try it with")
    if not 0 < probe.bytes <= PROBE_BYTES_MAX:
        raise ValueError(f"connected; the node grants {probe.bytes} bytes to try it with, which is not believed")
    memory = np.zeros(probe.bytes, dtype=np.uint8)
    region = await connected.transport.register(memory)
    began = time.perf_counter()
    (presented,) = await connected.present([probe.descriptor], deadline_s=READ_S)
    batch = Batch.of([(Extent(region.id, 0, probe.bytes), presented.extent(0, probe.bytes))])
    landed = await connected.read(batch, deadline_s=READ_S)
    took = _ms_since(began)
    if hashlib.sha256(memory.data).digest() != probe.sha256:
        raise ValueError(f"connected; {landed.bytes} bytes came that are not those which the node has")
    return landed.bytes, took


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1e3, 3)


def where(there: Home, here: Home) -> str:
    if there.same_files(here):
        return f"pid {there.pid} of user {there.uid}, on this host"
    if there.same_kernel(here):
        return f"user {there.uid}, in another container of this host"
    return f"user {there.uid}, on another host"


def told(found: Look) -> list[str]:
    """For people: the path, then each faster one with its reason."""
    lines = [f"peer     {found.peer}" + (f": {found.home}" if found.home else "")]
    if found.path:
        lines.append(f"path     {found.path}, by {found.address}")
        lines += [f"  not    {path}: {why}" for path, why in found.not_faster.items()]
        lines.append(f"connect  {found.connect_ms:.1f} ms")
    else:
        lines.append("path     none")
    if found.moved_bytes:
        lines.append(f"moved    {human(found.moved_bytes)} in {found.move_ms:.1f} ms, and they are right")
    if found.fault:
        lines.append(f"fault    {found.fault}")
    return lines
