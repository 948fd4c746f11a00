"""A real node offers RDMA; `kvstore doctor --peer` takes it, reads by it, and says so."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.config import TransferConfig
from kvstore.doctor_peer import PROBE_BYTES_MAX
from kvstore.observe.metrics import transfers as told_metrics
from kvstore.transfers import PROBE_BYTES, Transfers
from tests.certificates import Authority
from tests.integration.nodes import NodeProcess
from transfer.base import Batch, Extent
from transfer.offers import Carrier, Offer
from transfer.paths import Path as Way
from transfer.rdma import RdmaTransport

UIDS = (os.getuid(),)
LOOK_MAX_S = 120.0


def looked(node: NodeProcess, *sets: str) -> dict[str, Any]:
    """What the doctor says who runs in another container: there, sockets' paths mean something else."""
    command = ["unshare", "--mount", sys.executable, "-m", "kvstore", "doctor", "--peer", node.address, "--json"]
    command += [part for one in sets for part in ("--set", one)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LOOK_MAX_S)
    told: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == (told["fault"] == ""), done.stderr
    return told


def test_the_doctor_takes_rdma_to_a_node(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, "transfer.rdma=on", "transfer.rdma_devices=rxe_b0,rxe_b1") as node:
        (there,) = [each for each in node.facts["addresses"] if each.startswith("rdma://")]
        near = looked(node, "transfer.rdma_devices=rxe_a0,rxe_a1")
        assert (near["path"], near["address"], near["moved_bytes"]) == ("rdma", there, PROBE_BYTES)
        assert list(near["not_faster"]) == ["process", "host"] and "another container" in near["not_faster"]["host"]
        without = looked(node, "transfer.rdma=none")
        assert (without["path"], without["moved_bytes"]) == ("tcp", PROBE_BYTES)
        assert without["not_faster"]["rdma"] == "no rdma here: transfer.rdma = none"


def test_with_tls_only_who_is_believed_gets_rdma(tmp_path: Path) -> None:
    ours, strange = Authority(tmp_path, "ours"), Authority(tmp_path, "strange")

    def sets(authority: Authority, name: str, *, server: bool) -> list[str]:
        pair = authority.sign(name, server=server)
        files = {"certificate": pair.certificate, "private_key": pair.private_key, "peer_ca": ours.path}
        return [f"transfer.{key}={path}" for key, path in files.items()]

    with NodeProcess(tmp_path, "transfer.rdma=on", *sets(ours, "node", server=True)) as node:
        believed = looked(node, *sets(ours, "doctor", server=False))
        assert (believed["path"], believed["moved_bytes"]) == ("rdma", PROBE_BYTES)
        refused = looked(node, *sets(strange, "stranger", server=False))
        assert not refused["path"] and "before the peer said who it is" in refused["fault"]


def elsewhere(offer: Offer) -> Offer:
    """As from another container of this host."""
    return replace(offer, home=replace(offer.home, mount_namespace=1))


def test_a_client_that_listens_to_nobody_is_pulled_from_and_both_are_counted(tmp_path: Path) -> None:
    async def main() -> None:
        settings = TransferConfig(rdma="on", rdma_devices=("rxe_b0",))
        node = Transfers(settings, trusted_uids=UIDS, now_ns=time.monotonic_ns, path=str(tmp_path / "n"))
        client = Transfers(
            replace(settings, rdma_devices=("rxe_a0",)), trusted_uids=UIDS, now_ns=time.monotonic_ns, listens=False
        )
        try:
            await node.start()
            await client.start()
            assert client.connector.offer.why_not(Carrier.RDMA) == "only connects"
            connected = await client.connector.connect(elsewhere(node.connector.offer), deadline_s=10.0)
            assert connected.chosen.path is Way.RDMA
            probe = next(one for one in await node.probes() if one.carrier is Carrier.RDMA)
            memory = np.zeros(PROBE_BYTES, dtype=np.uint8)
            region = await connected.transport.register(memory)
            (presented,) = await connected.present([probe.descriptor], deadline_s=10.0, fresh=True)
            batch = Batch.of([(Extent(region.id, 0, PROBE_BYTES), presented.extent(0, PROBE_BYTES))])
            await connected.read(batch, deadline_s=10.0)
            assert hashlib.sha256(memory.data).digest() == probe.sha256 and PROBE_BYTES <= PROBE_BYTES_MAX

            pulling, granting = node.transport(Carrier.RDMA), client.transport(Carrier.RDMA)
            assert isinstance(pulling, RdmaTransport)
            back = await pulling.back(granting.incarnation, deadline_s=10.0)
            grant = await granting.grant(region, [(0, PROBE_BYTES)], lifetime_s=60.0)
            (shown,) = await back.present([grant.descriptor], deadline_s=10.0, fresh=True)
            slot = np.zeros(PROBE_BYTES, dtype=np.uint8)
            into = await pulling.register(slot)
            whole = Batch.of([(Extent(into.id, 0, PROBE_BYTES), shown.extent(0, PROBE_BYTES))])
            await back.read(whole, deadline_s=10.0)
            assert (slot == memory).all()

            samples = {
                (one.name, one.labels.get("direction")): one.value
                for family in told_metrics(client.connector.counts)
                for one in family.samples
                if one.labels["path"] == "rdma"
            }
            assert samples["kvstore_transfer_bytes_total", "read"] == PROBE_BYTES
            assert samples["kvstore_transfer_endpoints", None] == samples["kvstore_transfer_connects_total", None] == 1
        finally:
            await client.close()
            await node.close()

    asyncio.run(main())
