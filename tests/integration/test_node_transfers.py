"""A real node's offer, over both of its doors, and what `kvstore doctor --peer` makes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner

from kvstore import native
from kvstore.cli import main
from kvstore.config import TransferConfig
from kvstore.doctor_peer import reach
from kvstore.errors import Misconfigured
from kvstore.node.node import Node
from kvstore.security import SecurityConfig
from kvstore.transfers import PROBE_BYTES
from kvstore.wire import services, store
from tests.certificates import Authority
from tests.integration.grpc_node import TIMEOUT_S, config_for, running, tcp_address
from tests.integration.nodes import NodeProcess
from transfer.offers import Carrier, Route, parse_offer
from transfer.paths import Path as Way


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running(config_for(tmp_path)) as started:
        yield started


async def asked(address: str) -> store.OfferResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        return await services.AdminStub(channel).Offer(store.OfferRequest(), timeout=TIMEOUT_S)


async def test_both_doors_tell_the_same_offer(node: Node) -> None:
    told = await asked(tcp_address(node))
    assert told == await asked(f"unix:{node.admin_socket}")
    offer = parse_offer(told.offer)
    assert offer.home.pid == os.getpid() and offer.trusted_uids == (os.getuid(),)
    assert offer.routes[0] == Route(Carrier.LOCAL, f"unix:{node.socket}.peer")
    assert [route.carrier for route in offer.routes] == [Carrier.LOCAL, Carrier.TCP, Carrier.TCP]
    assert offer.routes[1].address == f"unix:{node.socket}.lanes" and offer.why_not(Carrier.RDMA)
    assert {route.address for route in offer.routes} < set(node.doors().addresses)
    assert [probe.carrier for probe in told.probes] == [Carrier.LOCAL, Carrier.TCP]


def test_the_framed_door_tells_it_too(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as process:
        session = native.Session(str(process.socket))
        answer = session.call(store.METHOD_OFFER, b"", 10.0)
        told = store.OfferResponse.FromString(bytes(answer.body))
        session.close()
        assert parse_offer(told.offer).home.pid == process.facts["pid"] and len(told.probes) == 2


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_the_offer_ends_with_the_node(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as node:
        told = await asked(tcp_address(node))
        assert "kv.sock.peer" in names(tmp_path)
    assert "kv.sock.peer" not in names(tmp_path)
    found = await reach("x", told, node.config)
    assert not found.well and not found.path and "no path to the peer" in found.fault
    assert "host: " in found.fault and "tcp: " in found.fault


def changed(told: store.OfferResponse, *carriers: Carrier, near: bool = True) -> store.OfferResponse:
    """As from a node that only has these ways. near: and Unix sockets."""
    offer = parse_offer(told.offer)
    routes = tuple(
        route for route in offer.routes if route.carrier in carriers and (near or not route.address.startswith("unix:"))
    )
    return store.OfferResponse(offer=replace(offer, routes=routes).encode(), probes=told.probes)


async def test_the_doctor_reads_by_every_way_and_says_why_no_faster_one(node: Node) -> None:
    told = await asked(tcp_address(node))
    near = await reach("x", told, node.config)
    assert near.well and (near.path, near.not_faster, near.moved_bytes) == ("process", {}, PROBE_BYTES)
    far = await reach("x", changed(told, Carrier.TCP), node.config)
    assert far.well and far.path == "tcp" and far.moved_bytes == PROBE_BYTES
    assert list(far.not_faster) == ["process", "host", "rdma"]
    assert far.not_faster["process"] == "peer offers no local"
    none = await reach("x", changed(told), node.config)
    assert not none.well and "tcp: peer offers no tcp" in none.fault


async def test_wrong_bytes_and_none_are_faults(node: Node) -> None:
    told = await asked(tcp_address(node))
    for probe in told.probes:
        probe.sha256 = hashlib.sha256(b"else").digest()
    lying = await reach("x", told, node.config)
    assert lying.path == "process" and not lying.well and "are not those" in lying.fault and not lying.moved_bytes
    for probe in told.probes:
        probe.bytes = 1 << 40
    assert "not believed" in (await reach("x", told, node.config)).fault
    del told.probes[:]
    assert "grants no bytes" in (await reach("x", told, node.config)).fault
    nonsense = await reach("x", store.OfferResponse(offer=b"KVOF"), node.config)
    assert not nonsense.well and nonsense.fault.startswith("offer: ")


def test_the_command_against_a_node_of_its_own(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, address="127.0.0.1:0") as process:
        done = CliRunner().invoke(main, ["doctor", "--peer", process.facts["address"], "--json"])
        told = json.loads(done.stdout)
        assert done.exit_code == 0, done.output
        assert (told["path"], told["moved_bytes"]) == ("host", PROBE_BYTES)
        assert told["not_faster"] == {"process": "another process"}
        assert f"pid {process.facts['pid']} of user" in told["home"]
        for_people = CliRunner().invoke(main, ["doctor", "--peer", process.address])
        assert for_people.exit_code == 0 and "  not    process: another process\n" in for_people.stdout


async def test_a_node_without_tcp_says_so(tmp_path: Path) -> None:
    config = replace(config_for(tmp_path), transfer=TransferConfig(address="none"))
    async with running(config) as node:
        told = await asked(tcp_address(node))
        found = await reach("x", changed(told, Carrier.TCP), config)
        assert found.well and found.address == f"unix:{node.socket}.lanes", "users of this machine have a way"
        found = await reach("x", changed(told, Carrier.TCP, near=False), config)
        assert "tcp: transfer.address = none" in found.fault


async def test_a_node_whose_bytes_would_leave_in_the_clear_does_not_start(tmp_path: Path) -> None:
    config = replace(config_for(tmp_path), transfer=TransferConfig(address="192.0.2.1:0"))
    with pytest.raises(Misconfigured, match=r"transfer\.address = '192\.0\.2\.1:0'.*in the clear"):
        async with running(config):
            pass


async def scraped(node: Node) -> str:
    def read() -> str:
        with urllib.request.urlopen(node.telemetry.address, timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def test_what_a_node_connects_to_is_counted_by_path(tmp_path: Path) -> None:
    async with (
        running(config_for(tmp_path / "one", metrics="127.0.0.1:0")) as node,
        running(config_for(tmp_path / "other")) as other,
    ):
        there = other.transfers.connector.offer
        gone = replace(there, routes=(Route(Carrier.LOCAL, f"unix:{tmp_path / 'gone'}"), there.routes[1]))
        connected = await node.transfers.connector.connect(gone, deadline_s=10.0)
        assert connected.chosen.path is Way.TCP
        told = await scraped(node)
        assert 'kvstore_transfer_endpoints{path="tcp"} 1.0' in told
        assert 'kvstore_transfer_refusals_total{path="process"} 1.0' in told
        assert 'kvstore_transfer_endpoints{path="process"} 0.0' in told
        await connected.close()
        assert 'kvstore_transfer_endpoints{path="tcp"} 0.0' in await scraped(node)


async def test_the_nodes_own_certificate_serves_transfers_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "peers")
    pair = authority.sign("node", server=True)
    security = SecurityConfig(certificate=pair.certificate, private_key=pair.private_key)
    config = config_for(tmp_path, security=security)
    async with running(config) as node:
        told = changed(await asked(f"unix:{node.admin_socket}"), Carrier.TCP, near=False)
        believing = replace(config, transfer=TransferConfig(peer_ca=authority.path))
        ours = await reach("x", told, believing)
        assert ours.well and (ours.path, ours.moved_bytes) == ("tcp", PROBE_BYTES)
        clear = await reach("x", told, replace(config, security=SecurityConfig()))
        assert not clear.path and "; tcp: " in clear.fault


async def test_with_tls_both_sides_show_who_they_are(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "peers")

    def settings(name: str, *, server: bool) -> TransferConfig:
        pair = authority.sign(name, server=server)
        return TransferConfig(certificate=pair.certificate, private_key=pair.private_key, peer_ca=authority.path)

    config = replace(config_for(tmp_path), transfer=settings("node", server=True))
    async with running(config) as node:
        told = changed(await asked(tcp_address(node)), Carrier.TCP, near=False)
        ours = await reach("x", told, replace(config, transfer=settings("doctor", server=False)))
        assert ours.well and (ours.path, ours.moved_bytes) == ("tcp", PROBE_BYTES)
        clear = await reach("x", told, replace(config, transfer=TransferConfig()))
        assert not clear.path and "; tcp: " in clear.fault
