"""What a process offers to its peers, which settings it refuses, and how long its probe may be read."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from kvstore.config import Config, TransferConfig, transfer_of
from kvstore.errors import Misconfigured
from kvstore.security import SecurityConfig
from kvstore.transfers import PROBE_LIFE_S, Transfers, own_offer, rdma_config, tcp_config
from transfer.errors import LimitReached
from transfer.offers import Carrier, Route, home_of
from transfer.regions import Region
from transfer.tcp import TcpConfig, TcpTransport, TlsFiles
from transfer.topology import Gid, Nic, Place

UIDS = (os.getuid(),)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TransferConfig(address="0.0.0.0:7402"), "not all"),
        (TransferConfig(address="[::]:7402"), "not all"),
        (TransferConfig(address="192.0.2.1:7402"), "in the clear"),
        (TransferConfig(certificate=Path("c.pem")), "both or neither"),
        (TransferConfig(peer_ca=Path("a.pem")), "needs transfer.certificate"),
    ],
)
def test_what_would_leave_loopback_in_the_clear_or_lead_nowhere_is_refused(config: TransferConfig, said: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^transfer\..*{said}"):
        tcp_config(config, listens=True)


def test_settings_reach_the_transport() -> None:
    config = TransferConfig("[::1]:7402", Path("c"), Path("k"), Path("a"), lanes=3, workers=2)
    told = tcp_config(config, listens=True)
    assert (told.host, told.port, told.lanes, told.workers, told.listens) == ("::1", 7402, 3, 2, True)
    assert told.tls is not None and (told.tls.certificate, told.tls.key, told.tls.ca) == ("c", "k", "a")


def test_tls_may_be_of_the_listening_side_alone_and_a_side_that_only_connects_needs_no_certificate() -> None:
    serving = tcp_config(TransferConfig(certificate=Path("c"), private_key=Path("k")), listens=True)
    assert serving.tls == TlsFiles("c", "k", "")
    assert tcp_config(TransferConfig(peer_ca=Path("a")), listens=False).tls == TlsFiles("", "", "a")


def test_files_of_security_stand_in_for_those_of_transfer() -> None:
    c, k, a, other = Path("c"), Path("k"), Path("a"), Path("other")
    security = SecurityConfig(certificate=c, private_key=k, client_ca=a)
    told = transfer_of(Config(transfer=TransferConfig(lanes=3), security=security))
    assert told == TransferConfig(certificate=c, private_key=k, peer_ca=a, lanes=3)
    own = TransferConfig(certificate=other, private_key=other)
    assert transfer_of(Config(transfer=own, security=security)) == own, "its own are whole, and not mixed with others"
    assert transfer_of(Config()) == TransferConfig()


def nic(state: str) -> Nic:
    gids = (Gid(1, "fe80:0000:0000:0001::1", "RoCE v2", "eth0"),)
    return Nic("mlx5_0", 1, Place((), None), state, "Ethernet", 100, "eth0", gids)


def test_what_is_lacking_is_told_with_its_reason() -> None:
    config = TransferConfig(address="none")
    offer = own_offer([Route(Carrier.LOCAL, "unix:/x")], [], (7, 5), config, no_rdma="no\nRDMA device" + "!" * 300)
    assert offer.why_not(Carrier.RDMA).startswith("no RDMA device!") and offer.fabrics == ()
    assert offer.why_not(Carrier.TCP) == "transfer.address = none" and offer.why_not(Carrier.LOCAL) == ""
    assert offer.trusted_uids == (5, 7) and offer.home == home_of()
    routes = [Route(Carrier.TCP, "tcp://127.0.0.1:1"), Route(Carrier.RDMA, "rdma://127.0.0.1:1")]
    both = own_offer(routes, [nic("ACTIVE")], (5,), TransferConfig())
    assert not both.lacks and both.fabrics == ("roce",)
    only = own_offer([], [nic("ACTIVE")], (5,), TransferConfig(rdma_address="none"))
    assert only.why_not(Carrier.RDMA) == "transfer.rdma_address = none" and only.why_not(Carrier.TCP) == "only connects"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TransferConfig(rdma_address="0.0.0.0:7402"), "rdma_address = .* not all"),
        (TransferConfig(rdma_address="192.0.2.1:7402"), "rdma_address = .* set transfer.rdma_trusted_network"),
    ],
)
def test_rdma_leaves_loopback_only_where_that_is_said(config: TransferConfig, said: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^transfer\..*{said}"):
        rdma_config(config, listens=True)
    assert rdma_config(config, listens=False).host == "127.0.0.1"
    trusting = TransferConfig(rdma_address="192.0.2.1:7", rdma_trusted_network=True, rdma_devices=("a", "b"))
    told = rdma_config(trusting, listens=True)
    assert (told.host, told.port, told.devices, told.listens, told.tls) == ("192.0.2.1", 7, ("a", "b"), True, None)
    sealed = TransferConfig("none", Path("c"), Path("k"), Path("a"), rdma_address="192.0.2.1:7")
    assert rdma_config(sealed, listens=True).tls == tcp_config(sealed, listens=True).tls != None  # noqa: E711


async def test_without_rdma_a_node_starts_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.transfers.unavailable", lambda: "pyverbs is away")
    for rdma, why in (("auto", "pyverbs is away"), ("none", "transfer.rdma = none")):
        transfers = Transfers(TransferConfig(rdma=rdma), trusted_uids=UIDS, now_ns=lambda: 0, sysfs=tmp_path)
        await transfers.start()
        assert transfers.connector.offer.why_not(Carrier.RDMA) == why
        await transfers.close()
    asked = Transfers(TransferConfig(rdma="on"), trusted_uids=UIDS, now_ns=lambda: 0, sysfs=tmp_path)
    with pytest.raises(Misconfigured, match=r"transfer.rdma = 'on': pyverbs is away"):
        await asked.start()
    await asked.close()


class Full(TcpTransport):
    """As a device that has pinned all that it may."""

    async def register(self, memory: object, **_: object) -> Region:  # type: ignore[override]
        raise LimitReached("the device takes no more memory", limit="memlock")


@pytest.mark.parametrize("rdma", ["auto", "on"])
async def test_memory_that_no_device_takes_costs_rdma_and_no_more(rdma: str, tmp_path: Path) -> None:
    transfers = Transfers(TransferConfig(), trusted_uids=UIDS, now_ns=lambda: 0, sysfs=tmp_path)
    fd = os.memfd_create("payload")
    os.ftruncate(fd, 4096)
    try:
        await transfers.start()
        transfers._config = TransferConfig(rdma=rdma)
        transfers._transports[Carrier.RDMA] = Full(TcpConfig(listens=False))  # type: ignore[assignment]
        memory = mmap.mmap(fd, 4096)
        if rdma == "on":
            with pytest.raises(Misconfigured, match=r"transfer.rdma = 'on': payload: the device takes no more"):
                await transfers.lend(memory, fd, "payload")
            return
        assert set(await transfers.lend(memory, fd, "payload")) == {Carrier.LOCAL, Carrier.TCP}
        offer = transfers.connector.offer
        assert offer.why_not(Carrier.RDMA) == "payload: the device takes no more memory"
        assert {route.carrier for route in offer.routes} == {Carrier.LOCAL, Carrier.TCP}
        with pytest.raises(ValueError, match="rdma has no way back"):
            await transfers.back(Carrier.RDMA, bytes(16), deadline_s=0.0)
    finally:
        await transfers.close()
        os.close(fd)


async def test_a_probe_is_granted_anew_while_it_can_still_be_read_for_a_minute(tmp_path: Path) -> None:
    now = [0]
    transfers = Transfers(
        TransferConfig(), trusted_uids=UIDS, now_ns=lambda: now[0], path=str(tmp_path / "p"), sysfs=tmp_path
    )
    try:
        await transfers.start()
        first = await transfers.probes()
        assert [probe.carrier for probe in first] == [Carrier.LOCAL, Carrier.TCP]
        assert len({probe.sha256 for probe in first}) == 1
        now[0] = int(PROBE_LIFE_S / 2 * 1e9)
        assert await transfers.probes() == first
        now[0] += 1
        again = await transfers.probes()
        assert all(one.descriptor != other.descriptor for one, other in zip(first, again, strict=True))
        assert [probe.sha256 for probe in again] == [probe.sha256 for probe in first]
    finally:
        await transfers.close()
        await transfers.close()
    assert not (tmp_path / "p").exists()


async def test_who_only_connects_offers_no_tcp_and_no_probe_of_it(tmp_path: Path) -> None:
    transfers = Transfers(TransferConfig(), trusted_uids=UIDS, now_ns=lambda: 0, listens=False, sysfs=tmp_path)
    try:
        await transfers.start()
        offer = transfers.connector.offer
        assert [route.carrier for route in offer.routes] == [Carrier.LOCAL]
        assert offer.why_not(Carrier.TCP) == "only connects"
        assert [probe.carrier for probe in await transfers.probes()] == [Carrier.LOCAL]
    finally:
        await transfers.close()


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_start_that_fails_names_the_setting_and_leaves_nothing(tmp_path: Path) -> None:
    config = TransferConfig(certificate=tmp_path / "c", private_key=tmp_path / "k", peer_ca=tmp_path / "a")
    for transfers, said in (
        (Transfers(config, trusted_uids=UIDS, now_ns=lambda: 0, path=str(tmp_path / "p")), r"\[transfer\]: "),
        (Transfers(TransferConfig(), trusted_uids=UIDS, now_ns=lambda: 0, path=str(tmp_path / "no" / "p")), "no/p: "),
    ):
        try:
            with pytest.raises(Misconfigured, match=said):
                await transfers.start()
        finally:
            await transfers.close()
        assert not left_in(tmp_path)


async def test_a_live_node_keeps_its_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "p")
    first, second = (Transfers(TransferConfig(), trusted_uids=UIDS, now_ns=lambda: 0, path=path) for _ in range(2))
    try:
        await first.start()
        with pytest.raises(Misconfigured, match=r"p: another process listens there \(if another node listens there"):
            await second.start()
        await second.close()
        assert [left.name for left in left_in(tmp_path)] == ["p"]
    finally:
        await first.close()


def test_rails_and_what_stays_registered_are_the_settings() -> None:
    told = rdma_config(TransferConfig(), listens=True)
    assert (told.all_rails, told.cached_bytes_max) == (False, 256 << 20)
    told = rdma_config(TransferConfig(rdma_rails="all", rdma_cached_bytes_max=0), listens=True)
    assert (told.all_rails, told.cached_bytes_max) == (True, 0)
